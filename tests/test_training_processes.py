"""Two processes over gloo against one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import save_tiny
from training_runs import run_settings, write_data

from memory3.training.logs import read_log
from memory3.training.run import train
from memory3.training.settings import Settings


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.long
def test_two_processes_do_what_one_does_with_twice_the_passes(tmp_path: Path) -> None:
    """Losses, gradients' norms and weights; resumed in the middle, to the last bit. As torchrun starts them."""
    model, data = save_tiny(tmp_path / "tiny", chat=True), write_data(tmp_path)
    settings = run_settings(model, data, rank=0, passes=1, steps=2, save_every=1, eval_every=0)
    both = tmp_path / "both"
    both.mkdir()
    (both / "settings.json").write_text(json.dumps(settings.to_dict()))
    one = train(settings.replace(passes=2), tmp_path / "one", device="cpu")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("training_process.py")), str(both)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()[-2000:]
    finally:
        for process in processes:
            process.kill()
    run = both / "straight"
    assert (run / "groups.jsonl").read_bytes() == (tmp_path / "one" / "groups.jsonl").read_bytes()
    ours, theirs = (
        [
            {k: v for k, v in line.items() if k.startswith(("step", "loss", "grad_norm", "learning_rate"))}
            for line in read_log(r)
        ]
        for r in (run, tmp_path / "one")
    )
    assert len(ours) == len(theirs) == 3  # two steps and the end
    assert "grad_norm" in ours[1]
    for line, other in zip(ours, theirs, strict=True):
        assert line == pytest.approx(other, rel=1e-5)
    mine, its = load_file(run / "model/model.safetensors"), load_file(tmp_path / "one/model/model.safetensors")
    start = load_file(Path(model) / "model.safetensors")
    assert max(float((mine[name] - start[name]).abs().max()) for name in start) > 1e-3
    for name in its:
        assert float((mine[name] - its[name]).abs().max()) < 1e-5, name
    for name in ("model/model.safetensors", "checkpoint-2/optimizer.safetensors", "checkpoint-2/random-1.safetensors"):
        assert (run / name).read_bytes() == (both / "resumed" / name).read_bytes(), name
    assert Settings.read(run / "settings.json") == settings
    assert one.main
