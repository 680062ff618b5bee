"""`memory3 train two-stage` on a tiny shape: both ways see the same sequences, and the figures are what the runs logged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import save_tiny
from training_runs import run_settings, write_data
from typer.testing import CliRunner

from memory3.cli.app import app
from memory3.errors import ConfigError
from memory3.models.sizes import SHAPES, ModelSizes
from memory3.training.groups import read_groups
from research.two_stage import two_stages


@pytest.fixture
def small_shape(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(SHAPES, "tiny", ModelSizes(5, 6, 2, 14, 24, 22, 331))  # type: ignore[index]
    return "tiny"


@pytest.mark.long
def test_the_two_ways_see_the_same_sequences(tmp_path: Path, small_shape: str) -> None:
    model_path, data = save_tiny(tmp_path, chat=True), write_data(tmp_path)
    options = (
        f"--shape {small_shape} --tokenizer {model_path} --steps 4 --warmup 0 --groups 2 --sequence-length 70 --eval-every 1"
    )
    more = f"--eval-groups 1 --seeds 2 --rate 0.01 --train-dtype float32 --data {data} --out {tmp_path / 'out'} --json"
    result = CliRunner().invoke(app, ["train", "two-stage", *options.split(), *more.split()])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures == json.loads((tmp_path / "out" / "stages.json").read_text())
    assert (tmp_path / "out" / "stages.png").read_bytes()[:4] == b"\x89PNG"
    for seed in (0, 1):
        start, warm, later = (
            read_groups(tmp_path / f"out/seed-{seed}/{n}/groups.jsonl") for n in ("from-start", "warm", "continual")
        )
        assert [g.rows[0].tokens for g in start] == [g.rows[0].tokens for g in (*warm, *later)]
        assert all(g.references and g.rows[0].chunks for g in (*start, *later))
        assert not any(g.references or g.rows[0].chunks for g in warm)
        curves = figures["seeds"][seed]
        assert [step for step, _ in curves["two_stages"]["eval_chunks"]] == [1, 2, 3, 4]
    ends = [f["two_stages"]["eval_packed"][-1][1] - f["two_stages"]["eval_chunks"][-1][1] for f in figures["seeds"]]
    assert figures["summary"]["two_stages"]["gain"]["mean"] == pytest.approx(sum(ends) / 2)
    assert figures["summary"]["continual_step_over_warmup_step"] > 0
    with pytest.raises(ConfigError, match=r"even number of steps \(not 3\)"):
        two_stages(
            run_settings(model_path, data, shape=small_shape, rank=0, steps=3, sequence_length=70), tmp_path / "odd", [0]
        )
