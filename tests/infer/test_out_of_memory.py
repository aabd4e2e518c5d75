"""What happens to an image that does not fit: real allocations that fail in a process of little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import variant

from pacs_node.infer import providers
from pacs_node.infer.starting import is_memory

MakeModel = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]

# The model's decoder needs 256 MiB an image. A network of two images at once, as a task may run them.
SCRIPT = """
import json, logging, resource, sys
from pathlib import Path
import numpy as np
from pacs_node.conditions import Conditions
from pacs_node.errors import ModelError
from pacs_node.infer import ImageResult, Settings, read_card
from pacs_node.infer.running import Model
from pacs_node.infer.session import open_session

class Pair:
    def __init__(self, card, settings):
        self.sessions = (open_session(card, "decoder", settings),)
    def __call__(self, image, conditions, seed, progress=None):
        (decoder,) = self.sessions
        latent = np.stack([np.full((4, 8, 8), value, np.float32) for value in (0.25, 0.5)])
        first, second = decoder.run(latent=latent)["image"]
        return ImageResult(first[0] + second[0], None, {"provider": decoder.choice.word, "warnings": []}, 0.0)

logging.basicConfig(stream=sys.stderr)
model = Model(read_card(Path(sys.argv[1])), Settings(tuple(sys.argv[2].split(",")), threads=1), Pair)
def limit(megabytes):
    size = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 2**20, resource.RLIM_INFINITY))
def attempt():
    try:
        result = model(np.zeros((64, 64), np.float32), Conditions())
    except ModelError as error:
        return {"error": str(error)}
    return {"value": float(result.image.mean()), **result.parameters}
answers = []
for megabytes in json.loads(sys.argv[3]):
    limit(megabytes) if megabytes else resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    answers.append(attempt())
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
print(json.dumps(answers))
"""


def answers(folder: Path, words: str, megabytes: list[int]) -> tuple[list[dict[str, Any]], str]:
    """What the model answers with so much memory more than it has, 0 for all of it, and the log."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, words, json.dumps(megabytes)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("word", ["cpu", "openvino"])
def test_two_images_that_do_not_fit_are_run_one_by_one(make_model: MakeModel, word: str) -> None:
    if word not in providers.available():
        pytest.skip(f"the installed ONNX Runtime has no {word}")
    folder = make_model("tiny-bone", files={"decoder.onnx": variant("hungry_decoder.onnx")})
    enough = {"cpu": 400, "openvino": 650}[word]
    (tight, again), log = answers(folder, word, [enough, 0])
    told = f"{word} ran out of memory with 2 images at once; run one by one"
    assert tight == {"value": 0.75, "provider": word, "warnings": [told]}
    assert again == {"value": 0.75, "provider": word, "warnings": []}  # the next image tries anew
    assert log.count(told) == 1


def test_an_image_that_does_not_fit_is_run_on_the_next_provider(make_model: MakeModel) -> None:
    if "openvino" not in providers.available():
        pytest.skip("the installed ONNX Runtime has no openvino")
    folder = make_model("tiny-bone", files={"decoder.onnx": variant("hungry_decoder.onnx")})
    (tight, nothing, again), log = answers(folder, "openvino,cpu", [450, 60, 0])
    assert tight["value"] == 0.75
    assert tight["provider"] == "cpu"
    assert tight["warnings"][0] == "openvino ran out of memory; run on the next provider"
    assert "No provider is left to try. Give the machine more memory" in nothing["error"]
    assert (again["provider"], again["warnings"]) == ("openvino", [])
    assert "tiny-bone: openvino ran out of memory; run on the next provider" in log


MESSAGES = [
    # Of ONNX Runtime's arena and CUDA provider, cuBLAS, cuDNN and TensorRT, not all of which can be had here.
    "core/framework/bfc_arena.cc:358 Failed to allocate memory for requested buffer of size 9",
    "Available memory of 1024 is smaller than requested bytes of 4096",
    "CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc((void**)&p, size);",
    "CudaMempoolArena::Alloc: cudaMallocFromPoolAsync failed: 2",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED",
    "[defaultAllocator.cpp::allocate::54] Error Code 1: Cuda Runtime (out of memory)",
    "Exception during initialization: std::bad_alloc",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_how_missing_memory_is_told(message: str) -> None:
    assert is_memory(RuntimeError(message))


def test_what_is_not_missing_memory() -> None:
    assert not is_memory(RuntimeError("Got invalid dimensions for input: sample. Please fix the inputs."))
    assert not is_memory(RuntimeError("CUDA failure 700: an illegal memory access was encountered"))
