"""A profile of this machine: a few layers of the model with random weights, run as writing and as decoding run them; a file,
read from the disk.

Takes seconds to a minute, needs no weights, and leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel

from memory3.errors import InputError, UnsupportedModel
from memory3.models.sizes import ModelSizes
from memory3.planner.machine import Machine

__all__ = ["measure"]

#: The layers that are run hold at least so many bytes, beyond what caches hold.
_WEIGHT_BYTES = 128 << 20
_FILE_BYTES = 256 << 20
_BLOCK_BYTES = 4 << 20
_RANDOM_READS = 64
_CONTEXT = 192
_STEPS = 40


def measure(
    shape: ModelSizes,
    tokens: int,
    *,
    batch: int = 16,
    repeats: int = 5,
    folder: str | Path | None = None,
    tell: Callable[[str], None] = lambda what: None,
) -> Machine:
    """Time this machine with a model's shape.

    Args:
        shape: of the model; its layers are run with random weights.
        tokens: of a row, as many as a reference's writing passes over.
        batch: rows.
        repeats: timings of which the median counts.
        folder: where the disk is measured, such as where a bank would be; default: the folder for temporary files, which on
            some machines lies in RAM; the environment variable ``TMPDIR`` names another.
        tell: called with what is being measured.

    Raises:
        InputError: nothing can be written into ``folder``.
        UnsupportedModel: transformers builds no layers of this shape.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = shape.attention_weights + shape.mlp_weights
    layers = min(shape.layers, max(2, -(-_WEIGHT_BYTES // (weights * dtype.itemsize))))
    model = _model(shape, layers, device, dtype)
    with torch.inference_mode():
        tell("writing")
        flops = 2 * batch * tokens * layers * (weights + 2 * tokens * shape.attention_width)
        seconds = _median(lambda: _write(model, batch, tokens), device, repeats)
        tell("decoding")
        bandwidth = _bandwidth(device, dtype, repeats)
        step = _decode(model, device) / layers
    tell("the disk")
    disk_bandwidth, disk_latency, free = _disk(Path(folder or tempfile.gettempdir()))
    return Machine(
        name="this machine",
        flops=flops / seconds,
        memory_bandwidth=bandwidth,
        disk_bandwidth=disk_bandwidth,
        disk_latency=disk_latency,
        layer_seconds=max(0.0, step - weights * dtype.itemsize / bandwidth),
        number_bytes=dtype.itemsize,
        ram=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        disk=free,
        price=0.0,
        disk_price=0.0,
    )


def _model(shape: ModelSizes, layers: int, device: torch.device, dtype: torch.dtype) -> LlamaModel:
    if shape.hidden % shape.heads:
        raise UnsupportedModel(
            f"a width of {shape.hidden} is no multiple of {shape.heads} heads: such layers cannot be built to be timed"
        )
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=8,
    )
    with torch.device(device):
        model: Any = LlamaModel(config)  # its `to` is decorated beyond what type checkers follow
    return model.to(dtype).eval()


def _write(model: LlamaModel, batch: int, tokens: int) -> None:
    model(torch.zeros(batch, tokens, dtype=torch.int64, device=model.device), use_cache=False)


def _median(run: Callable[[], None], device: torch.device, repeats: int) -> float:
    run()  # warms up
    times = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bandwidth(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Bytes/s of a matrix that no cache holds, times a vector: what one token does with weights."""
    matrix = torch.zeros(_WEIGHT_BYTES // dtype.itemsize // 1024, 1024, dtype=dtype, device=device)
    vector = torch.zeros(1, 1024, dtype=dtype, device=device)

    def run() -> None:
        torch.nn.functional.linear(vector, matrix)

    return matrix.nbytes / _median(run, device, 3 * repeats)


def _decode(model: LlamaModel, device: torch.device) -> float:
    """Seconds of a step of one token behind a context, all layers of the model."""
    cache: Any = DynamicCache()
    model(torch.zeros(1, _CONTEXT, dtype=torch.int64, device=device), past_key_values=cache, use_cache=True)
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    times = []
    for _ in range(_STEPS):
        _wait(device)
        started = time.perf_counter()
        model(token, past_key_values=cache, use_cache=True)
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _disk(folder: Path) -> tuple[float, float, int]:
    """Bytes/s of reading in order, seconds of a small read anywhere, and free bytes; the system's cache is told to forget the
    file.
    """
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".memory3-measure-") as file:
            block = os.urandom(_BLOCK_BYTES)
            for _ in range(_FILE_BYTES // _BLOCK_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            _forget(file.fileno())
            started = time.perf_counter()
            for place in range(0, _FILE_BYTES, _BLOCK_BYTES):
                os.pread(file.fileno(), _BLOCK_BYTES, place)
            bandwidth = _FILE_BYTES / (time.perf_counter() - started)
            _forget(file.fileno())
            started = time.perf_counter()
            for read in range(_RANDOM_READS):
                os.pread(file.fileno(), 4096, read * 2654435761 % _FILE_BYTES)
            return bandwidth, (time.perf_counter() - started) / _RANDOM_READS, free
    except OSError as error:
        raise InputError(f"{folder}: the disk there cannot be measured: {error.strerror}") from error


def _forget(descriptor: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
