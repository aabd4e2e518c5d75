"""What an NVIDIA device needs to be used: the driver's and TensorRT's libraries, and TensorRT's engines.

A TensorRT engine is compiled for one graph, device and version and takes minutes to build, so it is kept in a
folder whose name is a digest of all that it depends on: change any, and another folder is looked for.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import subprocess
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from pacs_node.files import atomic_write
from pacs_node.infer.cards import Card

DRIVER = "libcuda.so.1"
BUILT = "built.json"


@dataclass(frozen=True)
class Device:
    """The first NVIDIA device that this process may use."""

    name: str
    compute_capability: str
    driver: str


@cache
def device() -> Device | None:
    """As nvidia-smi tells; None without a driver or a device. CUDA_VISIBLE_DEVICES is honoured."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(
            [*query, f"--id={visible}"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    fields = [field.strip() for field in told.strip().splitlines()[0].split(",")] if told.strip() else []
    return Device(*fields) if len(fields) == 3 else None


@cache
def missing(word: str) -> str | None:
    """Why the provider ``cuda`` or ``tensorrt`` cannot start here, as far as can be told beforehand."""
    if not _loads(DRIVER):
        return f"there is no NVIDIA driver ({DRIVER})"
    if word == "tensorrt" and not _loads(name := tensorrt_library()):
        return f"TensorRT is not installed ({name})"
    return None


def tensorrt_library() -> str:
    """The library that ONNX Runtime's TensorRT provider is linked with, such as libnvinfer.so.10."""
    import onnxruntime

    provider = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    found = re.search(rb"libnvinfer\.so\.\d+", provider.read_bytes()) if provider.is_file() else None
    return found[0].decode() if found else "libnvinfer.so"


def tensorrt_version() -> str:
    """TensorRT's own number, such as 101303. Raises OSError if it is not installed."""
    return str(ctypes.CDLL(tensorrt_library()).getInferLibVersion())


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def engine_folder(cache_folder: Path, card: Card, card_device: Device, tensorrt: str) -> Path:
    """Where the engines of a model lie, for this device, driver, TensorRT and ONNX Runtime."""
    import onnxruntime

    what = {
        "model": card.digest,
        **asdict(card_device),
        "tensorrt": tensorrt,
        "onnxruntime": onnxruntime.__version__,
    }
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder / "tensorrt" / key


def engines(cache_folder: Path | None, card: Card) -> Path | None:
    """The folder for the engines of a model here; None where there is no cache, device or TensorRT."""
    if cache_folder is None or missing("tensorrt") is not None or (found := device()) is None:
        return None
    return engine_folder(cache_folder, card, found, tensorrt_version())


def is_built(cache_folder: Path | None, card: Card) -> bool:
    """Whether the engines of a model were built for this device and these versions."""
    folder = engines(cache_folder, card)
    return folder is not None and (folder / BUILT).is_file()


def mark_built(folder: Path, card: Card) -> None:
    """Note that the engines are complete; what they are for stands in the note, for people."""
    note = {"model": card.name, "version": card.version, "digest": card.digest, "device": asdict(device())}  # type: ignore[arg-type]
    atomic_write(folder / BUILT, json.dumps(note, indent=1).encode())
