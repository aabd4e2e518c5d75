"""The full-size BS-LDM (random weights, which cost what trained ones do) beside its authors' procedure.

Every row is a process of its own, so that its peak memory is its own, and all are run in one go. The authors'
procedure is 1000 DDPM steps in torch in float32: the radiograph encoded, 20 steps timed and multiplied by 50,
the result decoded. It is run on our own modules, which tests hold to the authors' within 1e-5.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

THREADS, STEPS, AUTHORS_STEPS, TIMED_STEPS = 2, 20, 1000, 20
GATE = ", where that passes the converter's gate"
ROOT = Path(__file__).resolve().parents[2]
MATRIX = 8192


def table() -> str:
    """Seconds, processor seconds and memory of each way; what cannot be measured here is said."""
    if find_spec("torch") is None:
        return "full-size: NOT MEASURED, as it needs torch (pip install -e '.[export]') to make the model."
    from pacs_node.infer import nvidia
    from pacs_node.infer.providers import available, native_bf16, native_int8

    words = available()
    gpu = "cuda" if "cuda" in words and nvidia.missing("cuda") is None else None
    processor = "openvino" if "openvino" in words else "cpu"
    ways = [(processor, "auto")]
    if processor == "openvino" and native_int8():
        ways += [(processor, "auto", "whole")]
        ways += [(processor, "bf16")] if native_bf16() else []
    ways += [(processor, "f32")]
    with tempfile.TemporaryDirectory(prefix="pacs-node-bench-") as name:
        folder = _child("convert", Path(name), "f16,int8" if gpu else "int8")["folder"]
        rows = {way: _child("run", folder, *way) for way in ways}
        authors = _child("authors")
        gpu_row = _child("run", folder, gpu, "auto") if gpu else None
        peak = _child("matrix")["flop_per_second"] if gpu else None
    lines = [
        f"Full-size BS-LDM, random weights, a 2140 x 1760 image through 1024 x 1024, {STEPS} steps, "
        f"{THREADS} threads, from pixels to pixels; the second image after loading:",
        "",
        "| how | encode, s | a step, s | decode, s | image, s | processor seconds | faster | load, s "
        "| peak memory, GB |",
        "|---|---|---|---|---|---|---|---|---|",
        _line(
            f"authors' procedure: torch f32, {AUTHORS_STEPS} DDPM steps ({TIMED_STEPS} timed, scaled)",
            authors,
            authors,
        ),
        *(_line(f"pacs-node, {row['ran']}{_note(row)}", row, authors) for row in rows.values()),
        _line(f"pacs-node, {gpu_row['ran']}", gpu_row, authors)
        if gpu_row
        else "| pacs-node, CUDA | " + " | ".join(["not measured"] * 6) + " | | |",
    ]
    if gpu_row and peak:
        share = authors["flop_per_image"] / gpu_row["seconds"] / peak
        lines += ["", f"CUDA: {peak / 1e12:.0f} TFLOP/s in an f16 product; the image uses {share:.0%} of it."]
    else:
        lines += ["", "CUDA and its share of the matrix peak: not measured (no device at hand)."]
    return "\n".join(lines)


def _note(row: dict[str, Any]) -> str:
    if "int8" not in row["ran"]:
        return ""
    return f", {'every other step shallow' if 'shallow' in row else 'every step whole'}{GATE}"


def _line(label: str, row: dict[str, Any], authors: dict[str, Any]) -> str:
    step = f"{row['denoiser']:.2f}" + (f", {row['shallow']:.2f}" if "shallow" in row else "")
    parts = f"{row['encoder']:.2f} | {step} | {row['decoder']:.2f}"
    faster = authors["seconds"] / row["seconds"]
    return (
        f"| {label} | {parts} | {row['seconds']:.1f} | {row['processor_seconds']:.0f} | {faster:.0f} x | "
        f"{row['load_seconds']:.1f} | {row['memory_gb']:.1f} |"
    )


def _child(*words: str | Path) -> dict[str, Any]:
    """One measurement in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.full_size", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{' '.join(map(str, words[:1]))}: {found}", file=sys.stderr, flush=True)
    return found


def _peak_gb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9


def convert(place: Path, variants: str) -> dict[str, Any]:
    """The model folder, by way of a checkpoint of random weights."""
    import torch

    from export.bone_suppression import published
    from export.bone_suppression.convert import Request
    from export.bone_suppression.convert import convert as made
    from export.bone_suppression.int8 import Int8
    from export.bone_suppression.unet import UNet
    from export.bone_suppression.vqgan import MLVQGAN
    from tests.export.filled import fill

    paths = {name: place / f"{name}.pth" for name in ("autoencoder", "denoiser")}
    torch.save(fill(MLVQGAN(published.BS_LDM.autoencoder)).state_dict(), paths["autoencoder"])
    torch.save(fill(UNet(published.BS_LDM.denoiser)).state_dict(), paths["denoiser"])
    # Random weights blow up what int8 rounds off and fail the gate of quality that trained ones may pass, so
    # it stands open here: the int8 row is what a model costs whose int8 graphs pass it.
    how = Int8(min_psnr=-1000.0, steps=2, levels=1)
    request = Request(
        **paths,
        out=place,
        name="full-size",
        published=published.BS_LDM,
        variants=tuple(variants.split(",")),
        int8=how,
    )
    folder = made(request, lambda text: print(text, file=sys.stderr, flush=True))
    for path in paths.values():
        path.unlink()
    return {"folder": str(folder)}


def run(folder: Path, provider: str, precision: Any, steps: str = "") -> dict[str, Any]:
    """Our way: load, one image to warm up, one that counts; each session's part of it.

    ``steps``: "whole" for all of them by the whole denoiser.
    """
    from pacs_node.conditions import Conditions
    from pacs_node.infer import Settings, make, read_card
    from pacs_node.phantom import Phantom

    card = read_card(folder)
    if steps == "whole" and card.diffusion is not None and card.diffusion.deep_reach is not None:
        unreachable = card.diffusion.model_copy(update={"deep_reach": 1e-9})
        card = card.model_copy(update={"diffusion": unreachable})
    begun = time.perf_counter()
    model = make(card, Settings((provider,), THREADS, precision, STEPS))
    sessions = {session.path.name.split(".")[0]: session for session in model.sessions}
    load_seconds = time.perf_counter() - begun
    spent: dict[str, list[float]] = {name: [] for name in sessions}

    def timed(inner: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
        def call(**inputs: Any) -> Any:
            started = time.perf_counter()
            outputs = inner(**inputs)
            times.append(time.perf_counter() - started)
            return outputs

        return call

    image = np.ascontiguousarray(Phantom(1).render(2140).radiograph[:, :1760], np.float32)
    model(image, Conditions(), 0)
    for name, session in sessions.items():
        for method in ("run", "bound"):
            setattr(session, method, timed(getattr(session, method), spent[name]))
    begun, processor = time.perf_counter(), time.process_time()
    result = model(image, Conditions(), 1)
    seconds, processor = time.perf_counter() - begun, time.process_time() - processor
    parameters = result.parameters
    return {
        "ran": f"{parameters['provider'].removesuffix('ExecutionProvider')} {parameters['precision']}",
        "seconds": seconds,
        "processor_seconds": processor,
        "load_seconds": load_seconds,
        "memory_gb": _peak_gb(),
        **{name: float(np.median(times)) for name, times in spent.items()},
    }


def authors() -> dict[str, Any]:
    """The authors' way, scaled from TIMED_STEPS to AUTHORS_STEPS, and the arithmetic of our way."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from export.bone_suppression import published
    from export.bone_suppression.unet import UNet
    from export.bone_suppression.vqgan import MLVQGAN
    from tests.export.filled import fill

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    shapes = published.BS_LDM
    begun = time.perf_counter()
    autoencoder = fill(MLVQGAN(shapes.autoencoder))
    denoiser = fill(UNet(shapes.denoiser))
    load_seconds = time.perf_counter() - begun
    levels = torch.cos((torch.arange(AUTHORS_STEPS + 1) / AUTHORS_STEPS + 0.008) / 1.008 * torch.pi / 2) ** 2

    @torch.no_grad()
    def procedure(steps: int, image: torch.Tensor, marks: list[float]) -> None:
        """The marks: processor seconds, too, behind each part."""
        marks += [time.perf_counter(), time.process_time()]
        condition = autoencoder.quantise(autoencoder.encode(image))[0]
        marks += [time.perf_counter(), time.process_time()]
        x = torch.randn_like(condition)
        for step in range(steps):
            t = AUTHORS_STEPS - 1 - step
            noise = denoiser(torch.cat((x, condition), 1), torch.full((1,), float(t)))[:, :4]
            before, now = levels[t] / levels[0], levels[t + 1] / levels[0]
            beta = (1 - now / before).clamp(max=0.999)
            clean = ((x - (1 - now).sqrt() * noise) / now.sqrt()).clamp(-1.4, 1.4)
            x = (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * x) / (1 - now)
            x = x + ((1 - before) / (1 - now) * beta).sqrt() * torch.randn_like(x)
        marks += [time.perf_counter(), time.process_time()]
        autoencoder.decoder(x)
        marks += [time.perf_counter(), time.process_time()]

    marks: list[float] = []
    procedure(TIMED_STEPS, torch.rand(1, 1, published.SIZE, published.SIZE) * 2 - 1, marks)
    wall, processor = np.diff(marks[::2]), np.diff(marks[1::2])
    peak = _peak_gb()
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        side = published.SIZE
        latent = torch.empty(1, 4, side // 8, side // 8, device="meta")
        autoencoder.to("meta")
        denoiser.to("meta")
        autoencoder.encode(torch.empty(1, 1, side, side, device="meta"))
        autoencoder.decoder(latent)
        for _ in range(STEPS):
            denoiser(torch.cat((latent, latent), 1), torch.empty(1, device="meta"))
    factor = AUTHORS_STEPS / TIMED_STEPS
    return {
        "seconds": float(wall[0] + factor * wall[1] + wall[2]),
        "processor_seconds": float(processor[0] + factor * processor[1] + processor[2]),
        "load_seconds": load_seconds,
        "memory_gb": peak,
        "encoder": float(wall[0]),
        "denoiser": float(wall[1] / TIMED_STEPS),
        "decoder": float(wall[2]),
        "flop_per_image": counted.get_total_flops(),
    }


def matrix() -> dict[str, Any]:
    """What the CUDA device does in a large f16 product, by ONNX Runtime."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    shape, half = [MATRIX, MATRIX], TensorProto.FLOAT16
    values = [helper.make_tensor_value_info(name, half, shape) for name in ("a", "b", "c")]
    product = helper.make_node("MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([product], "product", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CUDAExecutionProvider"])
    binding = session.io_binding()
    for name in ("a", "b"):
        array = np.random.default_rng(0).standard_normal(shape, np.float32).astype(np.float16)
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    binding.bind_output("c", "cuda", 0)
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        session.run_with_iobinding(binding)
        times.append(time.perf_counter() - begun)
    return {"flop_per_second": 2 * MATRIX**3 / min(times)}


if __name__ == "__main__":
    word, *rest = sys.argv[1:]
    answer = {
        "convert": lambda: convert(Path(rest[0]), rest[1]),
        "run": lambda: run(Path(rest[0]), *rest[1:]),
        "authors": authors,
        "matrix": matrix,
    }[word]()
    print(json.dumps(answer), flush=True)
