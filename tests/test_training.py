"""Training on tiny models: what a step reads, resuming, checkpoints, and what goes wrong."""

from __future__ import annotations

import errno
import functools
import gzip
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from ram_bank import RamBank
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_chat_tokenizer, tiny_model
from training_runs import CONFIG, TEXTS, run_settings, write_data, write_records
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from typer.testing import CliRunner

from memory3.attention.attach import attached
from memory3.calibration.selector import Passage, calibrate_selector
from memory3.cli.app import app
from memory3.config import MemoryConfig
from memory3.errors import (
    CheckpointFull,
    ConfigError,
    FingerprintMismatch,
    InputError,
    LossNotFinite,
    ModelError,
    ReadError,
    RecallError,
    TrainingError,
)
from memory3.llm import Memory3
from memory3.models.adapter import merge_adapter, read_adapter, trained_config
from memory3.models.scratch import from_scratch
from memory3.models.sizes import SHAPES, ModelSizes
from memory3.overlap import overlap
from memory3.training.collate import MemoryCollator
from memory3.training.groups import Group, TrainingRow
from memory3.training.live import LiveMemories, _logits, distilled_loss, group_loss
from memory3.training.logs import read_log
from memory3.training.records import Records, training_records
from memory3.training.run import train
from memory3.training.sampling import LEAK, GroupMaker, documents_of
from memory3.training.settings import KINDS, Mixture, Settings
from memory3.training.trainer import GroupTrainer
from memory3.types import Document, Reference


def a_model(config: MemoryConfig = CONFIG, **changes: Any) -> Memory3:
    return Memory3(tiny_model(**changes), tiny_chat_tokenizer(), config)


def a_group(m3: Memory3, bank: RamBank, questions: list[tuple[str, str]], kind: str = "memory") -> Group:
    """A group as `GroupMaker` makes them, without its retrieval and without an end of text."""
    rows = []
    for question, answer in questions:
        prompt, ids = m3.frame.after(m3.prompts.ids(question)), m3.prompts.ids(answer)
        rows.append(TrainingRow((*prompt, *ids), len(ids), len(ids)))
    return Group(kind, tuple((r.id, r.token_ids) for r in bank.all.values()), tuple(rows))


QUESTIONS = [
    ("Who built the bridge?", " the engineer"),
    ("Where does the river rise, as far as one knows?", " in the mountains"),
]


@pytest.mark.parametrize("selector", ["reconstruction", "attention", "random"])
def test_training_reads_what_serving_reads(selector: str) -> None:
    """The same loss, to rounding, as the answers' likelihood from a bank that was written beforehand."""
    m3 = a_model(CONFIG.replace(selector=selector))
    bank = RamBank(m3, TEXTS)
    loss = group_loss(m3, m3.model.requires_grad_(True), MemoryCollator(0)([a_group(m3, bank, QUESTIONS)]))
    served: Any = bank
    scored = m3.log_likelihood(
        [q for q, _ in QUESTIONS], [a for _, a in QUESTIONS], served, references=[list(bank.all)] * len(QUESTIONS)
    )
    assert float(loss.detach()) == pytest.approx(-sum(s for s, _ in scored) / sum(n for _, n in scored), rel=1e-5)


def rms_norm(module: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
    return module.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)


def a_precise_model(monkeypatch: pytest.MonkeyPatch) -> Memory3:
    """In float64, with gradients."""
    m3 = a_model(CONFIG.replace(selector="first"))
    m3.model.double().requires_grad_(True)
    for module in m3.model.modules():
        if isinstance(module, LlamaRMSNorm):  # transformers computes it in float32, whose rounding would hide the differences
            monkeypatch.setattr(module, "forward", functools.partial(rms_norm, module))
    return m3


def test_gradients_through_a_memory_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, for weights that write, weights that read, and the embedding of a reference's token."""
    m3 = a_precise_model(monkeypatch)
    bank = RamBank(a_model(CONFIG.replace(selector="first")), TEXTS)
    batch = MemoryCollator(0)([a_group(m3, bank, QUESTIONS)])
    group_loss(m3, m3.model, batch).backward()  # type: ignore[no-untyped-call]
    weights = dict(m3.model.named_parameters())
    only_in_a_reference = bank.all[bank.order[0]].token_ids[2]
    rng = random.Random(5)
    checked = 0
    for name in (
        "layers.1.self_attn.k_proj",
        "layers.3.self_attn.v_proj",
        "layers.2.mlp.up_proj",
        "layers.4.self_attn.q_proj",
    ):
        weight = weights[f"model.{name}.weight"]
        checked += _agrees(m3, batch, weight, (rng.randrange(weight.shape[0]), rng.randrange(weight.shape[1])))
    checked += _agrees(m3, batch, weights["model.embed_tokens.weight"], (only_in_a_reference, 3))
    assert checked == 5


def _agrees(m3: Memory3, batch: Any, weight: torch.Tensor, place: tuple[int, int]) -> bool:
    assert weight.grad is not None
    expected, step, sides = float(weight.grad[place]), 1e-6, []
    with torch.no_grad():
        for sign in (1, -1):
            weight[place] += sign * step
            sides.append(float(group_loss(m3, m3.model, batch)))
            weight[place] -= sign * step
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    return abs(expected) > 1e-6


def test_recomputed_activations_give_the_same_gradients() -> None:
    m3 = a_model()
    bank = RamBank(m3, TEXTS)
    batch = MemoryCollator(0)([a_group(m3, bank, QUESTIONS)])
    weight = m3.model.requires_grad_(True).get_parameter("model.layers.1.self_attn.v_proj.weight")
    found = []
    for recompute in (False, True):
        m3.model.train()
        if recompute:
            m3.model.activation_checkpointing_enable({"use_reentrant": False})
        m3.model.zero_grad()
        with attached(m3.model):
            group_loss(m3, m3.model, batch).backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        found.append(weight.grad.clone())
    assert float(found[0].abs().max()) > 0
    torch.testing.assert_close(*found)


def test_a_model_is_taught_by_itself_reading_all_pairs() -> None:
    """Against Kullback and Leibler's formula, token by token, and banks that were written beforehand."""
    m3 = a_model()
    whole = Memory3(m3.model, m3.tokenizer, CONFIG.replace(budget="all"))
    batch = MemoryCollator(0)([a_group(m3, RamBank(m3, TEXTS), QUESTIONS)])
    chances = []
    for reader in (whole, m3):
        bank: Any = RamBank(reader, TEXTS)
        with reader.recall(bank, references=batch.reads, prompt=batch.prompts, answer_tokens=batch.answers), torch.no_grad():
            positions = (batch.mask.cumsum(-1) - 1).clamp_min(0)
            logits = reader.model(batch.tokens, attention_mask=batch.mask, position_ids=positions, use_cache=False).logits
        chances.append(torch.softmax(logits.double(), dim=-1))
    expected = 0.0
    for row, tokens in enumerate(batch.mask):
        for at in tokens.nonzero().flatten().tolist():
            p, q = chances[0][row, at], chances[1][row, at]
            expected += sum(float(a) * (math.log(float(a)) - math.log(float(b))) for a, b in zip(p, q, strict=True))
    loss, away = distilled_loss(m3, m3.model.requires_grad_(True), batch)
    assert float(loss.detach()) == pytest.approx(float(group_loss(m3, m3.model, batch).detach()), rel=1e-6)
    assert float(away.detach()) == pytest.approx(expected / batch.scored, rel=1e-4)
    assert expected > 1e-5
    assert float(distilled_loss(whole, m3.model, batch)[1].detach()) == pytest.approx(0, abs=1e-7)


def test_no_gradient_flows_through_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    m3 = a_precise_model(monkeypatch)
    batch = MemoryCollator(0)([a_group(m3, RamBank(a_model(CONFIG.replace(selector="first")), TEXTS), QUESTIONS)])
    width = batch.tokens.shape[1]

    def logs(beside: bool) -> torch.Tensor:
        source = LiveMemories(m3.encoder, batch.references, beside=beside)
        logits = _logits(m3, m3.model, batch, source, None, width)
        return torch.log_softmax(_logits(m3, m3.model, batch, source.whole(), None, width) if beside else logits, dim=-1)

    weight, place, step = m3.model.get_parameter("model.layers.1.self_attn.v_proj.weight"), (3, 5), 1e-6
    distilled_loss(m3, m3.model, batch)[1].backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    sides = []
    with torch.no_grad():
        taught = logs(True)
        for sign in (1, -1):
            weight[place] += sign * step
            away = (taught.exp() * (taught - logs(False))).sum(-1) * batch.mask
            sides.append(float(away.sum() / batch.scored))
            weight[place] -= sign * step
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(float(weight.grad[place]), rel=1e-5)
    assert abs(float(weight.grad[place])) > 1e-7


def test_a_run_that_teaches_itself(model_path: str, data: str, tmp_path: Path) -> None:
    """What the teacher says is added where memories are read, while training and not while looking."""
    train(run_settings(model_path, data, distil=0.5, mixture={"memory": 1}), tmp_path / "run")
    entries = read_log(tmp_path / "run")
    steps = [entry for entry in entries if "loss" in entry]
    assert len(steps) == 6
    for entry in steps:
        assert entry["loss_memory_distil"] > 0
        assert entry["loss"] == pytest.approx(entry["loss_memory"] + 0.5 * entry["loss_memory_distil"], rel=1e-4)
    assert {name for entry in entries for name in entry if name.startswith("eval")} >= {"eval_memory"}
    assert not any(name.startswith("eval") and "distil" in name for entry in entries for name in entry)


def test_each_reference_of_a_pass_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    m3 = a_model()
    bank = RamBank(m3, TEXTS)
    seen: list[int] = []
    write = m3.encoder.encode_with_gradients
    monkeypatch.setattr(m3.encoder, "encode_with_gradients", lambda some: seen.append(len(some)) or write(some))
    first, second = (a_group(m3, bank, [question]) for question in QUESTIONS)
    together = group_loss(m3, m3.model, MemoryCollator(0)([first, second]))
    assert seen == [len(bank.all)]
    alone = [float(group_loss(m3, m3.model, MemoryCollator(0)([group]))) * group.rows[0].scored for group in (first, second)]
    assert float(together) == pytest.approx(sum(alone) / (first.rows[0].scored + second.rows[0].scored), rel=1e-5)


def test_collator_refuses_what_cannot_share_a_pass() -> None:
    read = Group("memory", (("a#0", (5, 6)),), (TrainingRow((7, 8, 9), 2, 2),))
    plain = Group("plain", (), (TrainingRow((7, 8, 9, 10), 3),))
    with pytest.raises(InputError, match="cannot share"):
        MemoryCollator(0)([read, plain])
    with pytest.raises(InputError, match="without rows"):
        MemoryCollator(0)([])
    batch = MemoryCollator(0)([plain, Group("plain", (), (TrainingRow((3, 4), 1),))])
    assert batch.tokens.tolist() == [[7, 8, 9, 10], [0, 0, 3, 4]]
    assert batch.mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.labels.tolist() == [[8, 9, 10], [-100, -100, 4]]


# ---- records ---------------------------------------------------------------------------------------------------------


def test_records_of_every_kind(tmp_path: Path) -> None:
    passage = "The bridge was built in 1874 by the engineer of the county. " * 5
    path = write_records(
        tmp_path / "a.jsonl.gz",
        [
            {"passage": "P", "question": "Q", "answer": "A", "source": 3},
            {"prompt": f"Read this:\n\n{passage}\n\nWho built the bridge, and when?", "answer": "the engineer"},
            {"prompt": f'Given this:\n\n{passage}\n\nanswer.\n\nQuestion: "When was it built?"', "answer": "1874"},
            {"prompt": "Say hello.", "answer": "hello"},
            {"text": "T"},
        ],
    )
    records = training_records([path])
    assert [(q.question, q.answer) for q in records.questions] == [
        ("Q", "A"),
        ("Read this:\nWho built the bridge, and when?", "the engineer"),
        ("When was it built?", "1874"),
    ]
    assert records.questions[1].passage == passage.strip()
    assert len(records.prompts) == 3
    assert records.texts == ["T"]
    few = write_records(tmp_path / "few.jsonl", [{"text": str(n)} for n in range(11)])
    assert training_records([few], most=3, seed=2).texts == training_records([few], most=3, seed=2).texts
    assert len(set(training_records([few], most=3).texts) & set(map(str, range(11)))) == 3
    asked = [{"passage": f"P{n % 5}", "question": f"Q{n}", "answer": "A"} for n in range(35)]
    drawn = training_records([write_records(tmp_path / "asked.jsonl", asked)], most=14).questions
    assert len(drawn) == 14
    assert len({question.passage for question in drawn}) == 2  # 7 on each


def test_bad_records(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"none\.jsonl"):
        training_records([tmp_path / "none.jsonl"])
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 99)[:-9])
    with pytest.raises(ReadError, match=r"cut\.jsonl"):
        training_records([tmp_path / "cut.jsonl.gz"])
    with pytest.raises(InputError, match="record 2 has fields title"):
        training_records([write_records(tmp_path / "b.jsonl", [{"text": "a"}, {"title": "b"}])])
    with pytest.raises(InputError, match="nothing to train on"):
        training_records([write_records(tmp_path / "c.jsonl", [])])


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    write_records(
        tmp_path / "test" / "qa.jsonl.gz", [{"id": 1, "question": "Who was it that built the bridge?", "answers": []}]
    )
    path = write_records(
        tmp_path / "a.jsonl",
        [{"text": "a"}, {"passage": "P", "question": "who was it  that built the Bridge?", "answer": "A"}],
    )
    same_answer = write_records(
        tmp_path / "b.jsonl", [{"passage": "P", "question": "Q", "answer": "Who was it that built the bridge?"}]
    )
    assert len(training_records([same_answer], [tmp_path / "test"]).questions) == 1
    with pytest.raises(InputError, match=r"record 2: 'who was it"):
        training_records([path], [tmp_path / "test"])
    assert len(training_records([path]).questions) == 1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"), chat=True)


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_path: str, data: str) -> Path:
    """A run of six steps without interruption."""
    run = tmp_path_factory.mktemp("run") / "straight"
    result = train(run_settings(model_path, data), run)
    assert result.step == 6
    assert result.trained == run / "adapter"
    assert result.seconds_per_step > 0
    return run


KILLED = """
import os, signal, sys
from pathlib import Path
from memory3.training import checkpoints
from memory3.training.run import train
from memory3.training.settings import Settings

write = checkpoints._write
def half(path, tensors, rest):
    if "checkpoint-6" in str(path):
        path.with_suffix(".safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, tensors, rest)
checkpoints._write = half
train(Settings.read(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.long
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, model_path: str, data: str, finished: Path) -> None:
    """Killed while it writes its second checkpoint."""
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(run_settings(model_path, data).to_dict()))
    run = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(settings), str(run)], env=environment, capture_output=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    result = train(Settings.read(run / "settings.json"), run, resume=True)
    assert result.step == 6
    for name in (
        "adapter/adapter_model.safetensors",
        "checkpoint-6/optimizer.safetensors",
        "checkpoint-6/random-0.safetensors",
    ):
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name
    assert (run / "groups.jsonl").read_bytes() == (finished / "groups.jsonl").read_bytes()
    kept = ("step", "loss", "grad_norm", "learning_rate", "eval_memory", "eval_text")
    ours, theirs = ([{k: line[k] for k in kept if k in line} for line in read_log(r)] for r in (run, finished))
    assert ours == theirs


def test_one_process_trains_in_a_folder(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    with FileLock(finished / ".lock"), pytest.raises(TrainingError, match="another process trains in"):
        train(Settings.read(finished / "settings.json"), finished, resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    lines = read_log(finished)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert {name for line in lines for name in line if name.startswith("eval_")} == {
        f"eval_{kind}" for kind in ("memory", "text", "none", "continue", "plain")
    }
    assert (finished / "losses.png").read_bytes()[:4] == b"\x89PNG"
    assert list((finished / "runs").rglob("events.*"))
    files = {path.name for path in (finished / "checkpoint-6").iterdir()}
    assert not any(name.endswith((".pt", ".pth", ".bin", ".pkl")) for name in files), files
    assert trained_config(f"any+{finished / 'adapter'}") == CONFIG


def test_an_adapter_merged_is_the_model_that_was_trained(finished: Path, model_path: str) -> None:
    from peft import PeftModel

    question: Any = torch.tensor([[5, 9, 33, 70, 41]])
    with torch.no_grad():
        base = tiny_model()
        plain = base(question).logits
        merged = tiny_model()
        merge_adapter(merged, finished / "adapter")
        theirs = PeftModel.from_pretrained(tiny_model(), str(finished / "adapter")).eval()
        torch.testing.assert_close(merged(question).logits, theirs(question).logits, rtol=1e-4, atol=1e-4)
        assert float((merged(question).logits - plain).abs().max()) > 1e-3


def test_an_adapter_may_leave_with_less_of_what_it_learned(finished: Path, tmp_path: Path, model_path: str, data: str) -> None:
    settings = Settings.read(finished / "settings.json").replace(strength=0.7)
    trained = train(settings, tmp_path / "run").trained
    assert trained is not None
    plain = dict(tiny_model().named_modules())
    for whole, part in zip(*(read_adapter(folder)[3].items() for folder in (finished / "adapter", trained)), strict=True):
        assert whole[0] == part[0] in plain
        change = [pair["B"] @ pair["A"] for pair in (whole[1], part[1])]
        assert float(change[0].norm()) > 0
        torch.testing.assert_close(change[1], 0.7 * change[0], rtol=1e-4, atol=1e-7)
    with pytest.raises(ConfigError, match=r"strength 0.7 is an adapter's.*give a rank"):
        settings.replace(rank=0)
    with pytest.raises(ConfigError, match=r"strength must be a number from 0 to 1, not 1\.5"):
        settings.replace(strength=1.5)


def test_a_folder_with_a_run_is_not_overwritten(finished: Path, model_path: str, data: str) -> None:
    with pytest.raises(TrainingError, match="--resume"):
        train(run_settings(model_path, data), finished)
    again = train(Settings.read(finished / "settings.json"), finished, resume=True)
    assert again.step == 6
    assert again.trained == finished / "adapter"


def test_a_loss_that_is_not_a_number_ends_the_run(
    tmp_path: Path, model_path: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights blow up behind the first checkpoint, which stays."""
    compute = GroupTrainer.compute_loss

    def spoiled(self: GroupTrainer, *args: Any, **kwargs: Any) -> Any:
        return compute(self, *args, **kwargs) * (float("nan") if self.state.global_step == 4 else 1.0)

    monkeypatch.setattr(GroupTrainer, "compute_loss", spoiled)
    with pytest.raises(LossNotFinite, match=r"nan at step 5.*checkpoint-3, is intact"):
        train(run_settings(model_path, data, eval_every=0), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_full_disk_is_said(tmp_path: Path, model_path: str, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from memory3.training import checkpoints

    write = checkpoints._write

    def full(path: Path, *rest: Any) -> None:
        if "checkpoint-6" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *rest)

    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.raises(CheckpointFull, match=r"step 6\. The last checkpoint, checkpoint-3, is intact"):
        train(run_settings(model_path, data, eval_every=0), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").glob("*check*")) == ["checkpoint-3"]
    monkeypatch.undo()
    assert train(Settings.read(tmp_path / "run" / "settings.json"), tmp_path / "run", resume=True).step == 6


def test_nothing_to_train_on_is_said_before_any_step(tmp_path: Path, model_path: str) -> None:
    path = write_records(tmp_path / "a.jsonl", [{"text": TEXTS[0] * 3}])
    with pytest.raises(InputError, match="memory and text passes"):
        train(run_settings(model_path, path), tmp_path / "run")
    with pytest.raises(ConfigError, match="do not fit into 6 steps"):
        run_settings(model_path, path, warmup=6)
    with pytest.raises(ConfigError, match="no kind of pass"):
        run_settings(model_path, path, mixture={"memroy": 1.0})


# ---- the adapter in use ----------------------------------------------------------------------------------------------


def test_a_bank_knows_the_adapter_it_was_written_with(finished: Path, model_path: str, tmp_path: Path) -> None:
    from memory3.bank import Bank

    adapter = finished / "adapter"
    plain = Memory3.from_pretrained(model_path, config=CONFIG)
    adapted = Memory3.from_pretrained(model_path, adapter=str(adapter))
    assert adapted.config == CONFIG  # what it was trained for
    assert adapted.name == f"{model_path}+{adapter.resolve()}"
    with Bank.open(tmp_path / "bank", adapted) as bank:
        bank.write([Document("a", TEXTS[0])])
        assert Bank.describe(tmp_path / "bank").model == adapted.name
    with pytest.raises(FingerprintMismatch, match=r"model is .*\+.* in the bank"):
        Bank.open(tmp_path / "bank", plain)
    again = Memory3.from_pretrained(Bank.describe(tmp_path / "bank").model)
    assert again.fingerprint == adapted.fingerprint
    off = Memory3.from_pretrained(adapted.name, adapter="none", config=CONFIG)
    assert off.name == model_path
    assert off.fingerprint == plain.fingerprint
    for ours, theirs in zip(off.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_bad_adapters(finished: Path, model_path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a folder nor shipped"):
        Memory3.from_pretrained(model_path, adapter=str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"cannot be read.*adapter_config\.json"):
        merge_adapter(tiny_model(), tmp_path / "empty")
    with pytest.raises(ModelError, match=r"made for another model: .* is absent here"):
        merge_adapter(tiny_model(num_hidden_layers=3), finished / "adapter")
    with pytest.raises(ModelError, match="made for another model"):
        merge_adapter(tiny_model(hidden_size=36), finished / "adapter")
    odd = tmp_path / "odd"
    shutil.copytree(finished / "adapter", odd)
    config = json.loads((odd / "adapter_config.json").read_text())
    (odd / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ModelError, match=r"not plain LoRA \(use_dora=True\)"):
        merge_adapter(tiny_model(), odd)


def test_the_command_trains_and_its_adapter_is_written_and_asked_with(tmp_path: Path, model_path: str, data: str) -> None:
    def command(*arguments: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == 0, result.output
        out: dict[str, Any] = json.loads(result.stdout)
        return out

    run, bank = str(tmp_path / "run"), str(tmp_path / "bank")
    options = "--steps 2 --warmup 0 --passes 1 --rank 2 --questions 2 --text-length 30 --eval-every 0 --train-dtype float32"
    memory = "--budget adaptive:29 --reference-length 23 --k 3 --mixture memory=1,plain=1"
    done = command(
        "train", "continual", "--out", run, "--data", data, "--model", model_path, *options.split(), *memory.split()
    )
    assert done["step"] == 2
    assert set(done["losses"]) <= {"loss", "loss_memory", "loss_plain"}
    (tmp_path / "a.txt").write_text(TEXTS[1])
    command("write", str(tmp_path / "a.txt"), "--bank", bank, "--model", model_path, "--adapter", done["trained"])
    answer = command("ask", "Who built the bridge?", "--bank", bank, "--max-new-tokens", "3")
    assert answer["model"].endswith(f"+{done['trained']}")
    refused = CliRunner().invoke(app, ["ask", "Who?", "--bank", bank, "--adapter", "none"])
    assert refused.exit_code == 1
    refused = CliRunner().invoke(app, ["train", "continual", "--out", run, "--resume", "--steps", "9"])
    assert refused.exit_code == 1
    assert command("train", "continual", "--out", run, "--resume")["step"] == 2


@pytest.mark.parametrize(("able", "dtype"), [({}, "float32"), ({"avx512_bf16": False, "amx_bf16": True}, "bfloat16")])
def test_a_run_says_in_which_numbers_it_computes(
    able: dict[str, bool], dtype: str, tmp_path: Path, model_path: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    settings = run_settings(model_path, data, dtype="auto", steps=1, warmup=0, passes=1, eval_every=0)
    train(settings, tmp_path / "run", device="cpu")
    assert Settings.read(tmp_path / "run" / "settings.json") == settings.replace(dtype=dtype)


# ---- the paper's sequences of chunks ---------------------------------------------------------------------------------


def chunk_maker(tmp_path: Path, texts: list[str], **changes: Any) -> tuple[Memory3, GroupMaker]:
    from memory3.bank import Bank

    config = CONFIG.replace(chunk_length=7, references_per_chunk=3)
    settings = Settings(memory=config, sequence_length=37, mixture=Mixture.of({"chunks": 1}), eval_every=0, **changes)
    m3 = a_model(config)
    records = Records(texts=texts)
    with Bank.open(tmp_path / "bank", m3) as bank:
        bank.write(documents_of(records), cold=True)
        maker = GroupMaker(m3, bank, records, settings)
        maker.made = list(maker.groups(5))  # type: ignore[attr-defined]  # while the bank is open
    return m3, maker


def test_a_chunk_reads_its_own_reference_and_those_of_the_chunks_before(tmp_path: Path) -> None:
    texts = [f"{text} This is the text of number {n}, and it goes on for a while." for n in range(5) for text in TEXTS]
    _, maker = chunk_maker(tmp_path, texts)
    groups: list[Group] = maker.made  # type: ignore[attr-defined]
    for group in groups:
        (row,) = group.rows
        tokens = dict(group.references)
        assert len(row.tokens) == 37
        assert len(row.chunks) == 6  # 5 of 7 tokens and one of 2
        for n, names in enumerate(row.chunks):
            assert 1 <= len(names) <= min(n + 1, 3)
            before = {name for earlier in row.chunks[max(0, n - 2) : n] for name in earlier}
            assert len(set(names) - before) <= 1  # one new reference at most
        for ids in tokens.values():
            assert overlap(row.tokens, ids) <= LEAK
    assert len({group.rows[0].tokens for group in groups}) > 1


def test_what_a_chunk_reads_is_what_it_would_read_alone(tmp_path: Path) -> None:
    """Loss of a sequence of chunks against the plain twin.

    That is a forward pass for each chunk, which reads its references in every layer's attention.
    """
    texts = [f"{text} This is the text of number {n}, and it goes on for a while." for n in range(3) for text in TEXTS]
    m3, maker = chunk_maker(tmp_path, texts)
    group: Group = maker.made[0]  # type: ignore[attr-defined]
    (row,) = group.rows
    batch = MemoryCollator(0)([group])
    fast = float(group_loss(m3, m3.model, batch).detach())
    references = [Reference(name, name, 0, 0, 0, "", ids) for name, ids in group.references]
    stored = dict(zip([r.id for r in references], m3.encode(references), strict=True))

    class Stored:
        def search(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("named")

        def memories(self, names: Any, **_: Any) -> Any:
            return [stored[name] for name in names]

        def count(self, where: Any = None) -> int:
            return len(stored)

    total, ids = 0.0, torch.tensor([row.tokens])
    for n, names in enumerate(row.chunks):
        # Up to chunk n, everything before it reads as it did; the loss of chunk n alone is taken.
        upto = min((n + 1) * 7, ids.shape[1])
        source: Any = Stored()
        with torch.no_grad(), m3.recall(source, chunk_references=[[*row.chunks[:n], names]]):
            logits = m3.model(ids[:, :upto], use_cache=False).logits
        logs = torch.log_softmax(logits[0, :-1], -1)
        for at in range(max(n * 7, 1), upto):
            total -= float(logs[at - 1, ids[0, at]])
    assert fast == pytest.approx(total / (ids.shape[1] - 1), rel=1e-5)
    with (
        pytest.raises(RecallError, match="for 1 chunks of a prompt that has 6"),
        m3.recall(source, chunk_references=[[[references[0].id]]]),
    ):
        m3.model(ids)


def test_sequences_need_a_chunk(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chunks passes, but the data has no sequence of 7 tokens"):
        chunk_maker(tmp_path, ["short"])
    with pytest.raises(ConfigError, match="less than a chunk of 64"):
        Settings(sequence_length=63)


# ---- from scratch ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_shape(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(SHAPES, "tiny", ModelSizes(5, 6, 2, 14, 24, 22, 331))  # type: ignore[index]
    return "tiny"


def test_from_scratch_has_the_shape_and_a_seed(small_shape: str, model_path: str) -> None:
    model, tokenizer = from_scratch(small_shape, model_path, seed=3)
    embedding = 331 * 24
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert sum(p.numel() for p in model.parameters()) - norms == SHAPES[small_shape].block_weights + embedding
    again, other = (from_scratch(small_shape, model_path, seed=seed)[0] for seed in (3, 4))
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    assert tokenizer("the river")["input_ids"]
    with pytest.raises(ConfigError, match="shape 'none' is unknown"):
        from_scratch("none", model_path)
    SHAPES[small_shape] = ModelSizes(5, 6, 2, 14, 24, 22, 7)  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"tokens, the shape tiny 7: choose"):
        from_scratch(small_shape, model_path)


@pytest.mark.parametrize(("name", "billions"), [("memory3-2.4b", 2.4), ("memory3-0.92b", 0.92), ("memory3-27m", 0.027)])
def test_the_papers_shapes_have_its_sizes(name: str, billions: float) -> None:
    assert SHAPES[name].block_weights / 1e9 == pytest.approx(billions, rel=0.02)


def test_warm_up_then_continual(tmp_path: Path, small_shape: str, model_path: str, data: str) -> None:
    """A packed sequence is the text without memories, and the second stage starts from the model that the first left."""
    first = run_settings(
        model_path, data, shape=small_shape, rank=0, sequence_length=70, mixture={"packed": 1}, steps=4, groups=2, save_every=2
    )
    result = train(first, tmp_path / "warm")
    assert result.trained == tmp_path / "warm" / "model"
    assert not (tmp_path / "warm" / "references").exists()
    assert set(result.losses) == {"loss", "loss_packed", "eval_packed"}
    assert result.losses["eval_packed"] < 6.5
    second = run_settings(
        str(result.trained),
        data,
        rank=0,
        sequence_length=50,
        mixture={"chunks": 1},
        steps=2,
        eval_every=1,
        memory=CONFIG.replace(chunk_length=7).to_dict(),
    )
    done = train(second, tmp_path / "second")
    assert set(done.losses) == {"loss", "loss_chunks", "eval_chunks", "eval_packed"}
    m3 = Memory3.from_pretrained(str(done.trained), config=CONFIG)
    before = Memory3.from_pretrained(str(result.trained), config=CONFIG)
    assert m3.fingerprint != before.fingerprint


def test_the_warm_up_command(tmp_path: Path, small_shape: str, model_path: str, data: str) -> None:
    options = f"--shape {small_shape} --tokenizer {model_path} --steps 2 --warmup 1 --groups 2 --sequence-length 70"
    options += " --eval-every 0 --json"
    result = CliRunner().invoke(app, ["train", "warmup", "--out", str(tmp_path / "run"), "--data", data, *options.split()])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["trained"] == str(tmp_path / "run" / "model")
    stored = Settings.read(tmp_path / "run" / "settings.json")
    assert (stored.weight_decay, stored.rank, stored.mixture.packed) == (0.1, 0, 1)


def test_what_is_looked_at_is_never_trained_on(tmp_path: Path, model_path: str, data: str) -> None:
    """Over several rounds of the data: no held-back question's passage, text or sequence comes back."""
    from memory3.bank import Bank

    settings = run_settings(model_path, data, sequence_length=64, eval_groups=2, mixture=dict.fromkeys(KINDS, 1.0))
    settings = settings.replace(memory=CONFIG.replace(chunk_length=16).to_dict())
    m3 = a_model(settings.memory)
    records = training_records([data])
    with Bank.open(tmp_path / "bank", m3) as bank:
        bank.write(documents_of(records), cold=True)
        maker = GroupMaker(m3, bank, records, settings)
        trained = list(maker.groups(90))
    assert {group.kind for group in trained} == set(KINDS)
    for kind in ("memory", "chunks", "packed", "continue", "plain", "recite", "prompt", "preference", "none"):
        held = {row.tokens for group in maker.held_back[kind] for row in group.rows}
        assert held
        for other in trained:
            if other.kind == kind or {other.kind, kind} <= {"chunks", "packed"} or {other.kind, kind} <= {"continue", "plain"}:
                assert not held & {row.tokens for row in other.rows}, kind


def test_a_fitted_selector_goes_with_what_was_trained(
    tmp_path: Path, model_path: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The selector of the run lies beside the adapter, and whoever loads that uses it.

    It is the one that the model learned to be read by.
    """
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    before = Memory3.from_pretrained(model_path, config=CONFIG)
    learned = calibrate_selector(before, [Passage(record.text) for record in before.split(Document("d", TEXTS[0] * 3))])
    memory = CONFIG.replace(selector="learned").to_dict()
    settings = run_settings(model_path, data, memory=memory, steps=3, warmup=0, eval_every=0, mixture={"memory": 1})
    trained = train(settings, tmp_path / "run").trained
    assert trained is not None
    shutil.rmtree(tmp_path / "cache" / "selectors")
    adapted = Memory3.from_pretrained(f"{model_path}+{trained}")
    assert adapted.config.selector == "learned"
    assert adapted.learned is not None
    assert torch.equal(adapted.learned.weights, learned.weights)
    narrow = Memory3.from_pretrained(f"{model_path}+{trained}", dtype="bfloat16")
    assert narrow.whole_model != adapted.whole_model  # the same adapter, in another number format
    assert narrow.learned is not None
    weights = trained / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(ConfigError, match="was not fitted to this model yet"):  # it was to weights that are gone
        Memory3.from_pretrained(f"{model_path}+{trained}")
    with pytest.raises(ConfigError, match="was not fitted to this model yet"):
        Memory3.from_pretrained(model_path, config=adapted.config)


def test_recited_references_are_read(tmp_path: Path, model_path: str, data: str) -> None:
    """Rows of kind recite are references of their own group, scored behind the tokens that call them.

    What is asked in held-back groups is not among them.
    """
    from memory3.bank import Bank

    settings = run_settings(model_path, data, eval_groups=1, mixture={"memory": 1, "recite": 1})
    m3 = a_model(settings.memory)
    records = training_records([data])
    with Bank.open(tmp_path / "bank", m3) as bank:
        bank.write(documents_of(records), cold=True)
        maker = GroupMaker(m3, bank, records, settings)
        groups = [group for group in maker.groups(40) if group.kind == "recite"]
    kept = {tokens for group in maker.held_back["memory"] for _, tokens in group.references}
    assert kept
    recited = [row.tokens for group in groups for row in group.rows]
    assert len(set(recited)) > 7
    assert not kept & set(recited)
    for group in groups:
        assert 1 <= len(group.rows) <= settings.texts
        assert 1 < len(group.references) <= settings.memory.references_per_chunk
        for row in group.rows:
            assert row.tokens in [tokens for _, tokens in group.references]
            assert (row.scored, row.answer) == (len(row.tokens) - 8, 0)
