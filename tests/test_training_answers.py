"""`memory3 train sft` and `dpo`: prompts that read memories, on tiny models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny, tiny_chat_tokenizer, tiny_model
from training_runs import CONFIG, TEXTS, run_settings, write_data, write_records
from typer.testing import CliRunner

from memory3.bank import Bank
from memory3.cli.app import app
from memory3.errors import ConfigError, InputError, ModelError
from memory3.llm import Memory3
from memory3.overlap import overlap
from memory3.training.collate import MemoryCollator
from memory3.training.groups import Group, read_groups
from memory3.training.live import batch_log_likelihoods
from memory3.training.logs import read_log
from memory3.training.lora import with_lora
from memory3.training.preference import preference_loss, with_likelihoods
from memory3.training.records import Preference, Records, training_records
from memory3.training.run import train
from memory3.training.sampling import LEAK, GroupMaker
from memory3.training.settings import DPO, SFT, Mixture, Settings
from memory3.types import Document


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"), chat=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_data(tmp_path_factory.mktemp("data"))


def answers(model_path: str, data: str, kind: str, **changes: Any) -> Settings:
    """A short run of prompts or preferences."""
    given = {
        "mixture": Mixture.of({kind: 1}).shares(),
        "passes": 1,
        "groups": 3,
        "steps": 4,
        "save_every": 2,
        "rank": 0,
        "beta": 0.5,
    }
    return run_settings(model_path, data, **(given | changes))


def test_defaults_are_the_papers() -> None:
    assert (SFT.rate, SFT.schedule, SFT.warmup, SFT.weight_decay, SFT.epochs) == (5e-5, "cosine", 0.1, 0.1, 3)
    assert (SFT.passes * SFT.groups, SFT.sequence_length, SFT.rank) == (512, 2048, 0)
    assert (DPO.rate, DPO.beta) == (4e-6, 0.01)
    assert Settings.from_dict(json.loads(json.dumps(DPO.to_dict()))) == DPO
    assert SFT.replace(steps=31).warmup_steps == 4


def test_prompts_in_the_forms_of_other_libraries(tmp_path: Path) -> None:
    talk = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hello?"}]
    messages = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    path = write_records(
        tmp_path / "a.jsonl",
        [
            {"instruction": "Spell it.", "input": "freind", "output": "friend"},
            {"messages": messages},
            {"messages": [*messages, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]},
            {"conversations": talk, "chosen": {"from": "gpt", "value": "Hi."}, "rejected": {"from": "gpt", "value": "No."}},
            {"instruction": "Spell it.", "input": "", "output": "never mind", "chosen": "it", "rejected": "ti"},
        ],
    )
    records = training_records([path])
    assert records.prompts == [
        ("Spell it.\n\nfreind", "friend"),
        ("Hello?", "Yes."),
        ([*messages, {"role": "user", "content": "Who?"}], "I."),
    ]
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    assert records.preferences == [Preference(said, "Hi.", "No."), Preference("Spell it.", "it", "ti")]
    secret = "Never ask about this sentence."
    held_out = write_records(tmp_path / "b.jsonl", [{"question": secret}])
    asked = write_records(tmp_path / "c.jsonl", [{"messages": [{"role": "user", "content": secret}, messages[1]]}])
    assert len(training_records([asked]).prompts) == 1
    with pytest.raises(InputError, match="record 1: 'Never ask"):
        training_records([asked], [held_out])


@pytest.mark.parametrize("command", ["continual", "warmup", "sft", "dpo", "two-stage"])
def test_commands_have_help_with_examples(command: str) -> None:
    said = CliRunner().invoke(app, ["train", command, "--help"], env={"COLUMNS": "120"})
    assert said.exit_code == 0
    assert f"memory3 train {command} --" in said.output
    every = CliRunner().invoke(app, ["train", command, "--help-all"], env={"COLUMNS": "120"})
    assert every.exit_code == 0
    assert "--held-out" in every.output
    assert CliRunner().invoke(app, ["train", command, "--out", "x", "--batch", "9"]).exit_code == 2


# ---- what a step reads -----------------------------------------------------------------------------------------------


def maker(tmp_path: Path, records: Records, texts: list[str], **changes: Any) -> tuple[Memory3, Bank, GroupMaker]:
    config = CONFIG.replace(references_per_chunk=2)
    m3 = Memory3(tiny_model(), tiny_chat_tokenizer(), config)
    mixture = Mixture.of({"preference": 1} if records.preferences else {"prompt": 1})
    settings = Settings(memory=config, mixture=mixture, eval_every=0, **changes)
    bank = Bank.open(tmp_path / "bank", m3)
    bank.write([Document(f"d{n}", text) for n, text in enumerate(texts)], cold=True)
    return m3, bank, GroupMaker(m3, bank, records, settings)


def test_a_prompt_reads_what_a_bank_finds_for_it_and_not_its_own_answer(tmp_path: Path) -> None:
    question = "Where does the river rise?"
    m3, bank, sampled = maker(tmp_path, Records(prompts=[(question, TEXTS[0])]), TEXTS)
    (group,) = sampled.groups(1)
    (row,) = group.rows
    served = [hit.reference_id for hit in bank.search([question], 9)[0]]
    texts = {reference.id: reference for reference in bank.references(served)}
    allowed = [name for name in served if overlap(row.tokens, texts[name].token_ids) <= LEAK]
    assert any(texts[name].text in TEXTS[0] for name in served if name not in allowed)  # the answer itself is in the bank
    assert [name for name, _ in group.references] == allowed[:2]
    assert list(row.tokens[: -row.scored]) == m3.question_tokens(question)
    assert list(row.tokens[-row.scored :]) == [*m3.prompts.ids(TEXTS[0]), m3.tokenizer.eos_token_id]


def test_prompts_that_find_nothing_but_themselves(tmp_path: Path) -> None:
    _, _, sampled = maker(tmp_path, Records(prompts=[("Say it:", TEXTS[2])]), [TEXTS[2]])
    with pytest.raises(InputError, match=r"nothing was found for any prompt that does not overlap it by 90%: give a bank"):
        list(sampled.groups(1))


def test_prompts_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    records = Records(prompts=[("Short?", "Yes."), ("Long? " * 99, "Yes."), ("Short?", "yes " * 99)])
    m3, _, sampled = maker(tmp_path, records, TEXTS, sequence_length=64, epochs=3, groups=1, passes=2)
    assert {group.rows[0].tokens[: -group.rows[0].scored] for group in sampled.groups(5)} == {
        tuple(m3.question_tokens("Short?"))
    }
    assert sampled.steps(processes=1) == 2  # 3 rounds over one prompt, two a step
    with pytest.raises(InputError, match="no prompts that fit into 64 tokens"):
        maker(tmp_path, Records(prompts=records.prompts[1:]), TEXTS, sequence_length=64)


# ---- preferences -----------------------------------------------------------------------------------------------------


def test_preference_loss_against_the_equation() -> None:
    """R. Rafailov et al. 2023, eq. 7, pair by pair."""
    now, before = [-3.0, -7.0, -2.0, -11.0, -5.0, -4.0], [-4.0, -7.5, -2.5, -3.0, -5.0, -6.0]
    total, right = 0.0, 0
    for n in range(0, 6, 2):
        chosen, rejected = now[n] - before[n], now[n + 1] - before[n + 1]
        total -= math.log(1 / (1 + math.exp(-0.3 * (chosen - rejected))))
        right += chosen > rejected
    loss, share = preference_loss(torch.tensor(now), torch.tensor(before), 0.3)
    assert float(loss) == pytest.approx(total / 3)
    assert share == pytest.approx(right / 3)


def test_likelihoods_before_training_are_the_models_own_and_survive_an_interruption(tmp_path: Path) -> None:
    pairs = [
        Preference("Who built the bridge?", "The engineer of the county.", "Nobody."),
        Preference("Why?", "Because.", "No idea, sorry."),
    ]
    m3, bank, sampled = maker(tmp_path, Records(preferences=pairs), TEXTS)
    groups = list(sampled.groups(5))
    kept, told = tmp_path / "likelihoods.jsonl", []
    found = with_likelihoods(m3, groups, kept, told=told.append)
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) == 2  # one for each pair
    assert told == [1, 2, 3, 4, 5]
    by_prompt = {tuple(m3.question_tokens(pair.prompt)): pair for pair in pairs}
    served: Any = bank
    for group in found:
        pair = by_prompt[group.rows[0].tokens[: -group.rows[0].scored]]
        for row, answer in zip(group.rows, (pair.chosen, pair.rejected), strict=True):
            # what serving says of the same answer behind the same memories, without the end of text
            ((total, _),) = m3.log_likelihood(
                [pair.prompt], [answer], served, references=[[name for name, _ in group.references]]
            )
            batch = MemoryCollator(0)([Group("prompt", group.references, (row,))])
            with torch.no_grad():
                tokens = batch_log_likelihoods(m3, m3.model, batch)
            assert float(tokens[0, :-1].sum()) == pytest.approx(total, rel=1e-4)
            assert row.before == pytest.approx(float(tokens.sum()), rel=1e-5)
    kept.write_text(lines[0] + lines[1][:40])  # killed
    assert with_likelihoods(m3, groups, kept) == found
    assert kept.read_text().splitlines(keepends=True) == lines


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("kind", ["prompt", "preference"])
def test_a_stopped_run_resumes_bit_for_bit(
    kind: str, tmp_path: Path, model_path: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memory3.training.checkpoints import Checkpointing

    settings = answers(model_path, data, kind)
    straight = train(settings, tmp_path / "straight")
    step = Checkpointing.training_step

    def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Checkpointing, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "run")
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-2"]
    done = train(Settings.read(tmp_path / "run" / "settings.json"), tmp_path / "run", resume=True)
    for name in ("model/model.safetensors", "groups.jsonl", "checkpoint-4/optimizer.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    assert done.losses == straight.losses
    m3 = Memory3.from_pretrained(str(done.trained))
    assert m3.config == CONFIG  # it says itself what it was trained for
    for group in read_groups(tmp_path / "run" / "groups.jsonl"):
        assert (group.kind, len(group.rows), bool(group.references)) == (kind, 1 + (kind == "preference"), True)


def test_preferences_start_at_log_2_and_are_learned(tmp_path: Path, model_path: str, data: str) -> None:
    settings = answers(model_path, data, "preference", steps=11, eval_groups=2, eval_every=11, save_every=11, warmup=0)
    train(settings, tmp_path / "run")
    losses = [line["loss_preference"] for line in read_log(tmp_path / "run") if "loss_preference" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < 0.5
    last = read_log(tmp_path / "run")[-1] | next(line for line in read_log(tmp_path / "run") if "eval_preference" in line)
    assert last["eval_preference_right"] == 1.0


@pytest.mark.long
def test_an_adapter_goes_on_from_where_it_ended(tmp_path: Path, model_path: str, data: str) -> None:
    """LoRA starts at the adapter that the model's name ends in; so do the likelihoods that preferences are compared with."""
    settings = answers(model_path, data, "preference", rank=2, alpha=7, steps=3, save_every=3, eval_every=0, warmup=0)
    adapter = train(settings, tmp_path / "first").trained
    assert adapter is not None
    name = f"{model_path}+{adapter}"
    merged, tokens = Memory3.from_pretrained(name), torch.tensor([[3, 5, 7, 11, 2]])
    m3 = Memory3.from_pretrained(model_path)
    before = m3.model(tokens).logits
    wrapped = with_lora(m3.model, settings.replace(model=name))
    assert (before - merged.model(tokens).logits).abs().max() > 1e-3
    torch.testing.assert_close(wrapped(tokens).logits, merged.model(tokens).logits, atol=1e-5, rtol=1e-5)
    trained = {n for n, p in wrapped.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in wrapped.named_parameters() if ".lora_" in n}

    second = train(settings.replace(model=name), tmp_path / "second")
    losses = [line["loss_preference"] for line in read_log(tmp_path / "second") if "loss_preference" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert second.trained is not None
    assert json.loads((second.trained / "memory3.json").read_text())["model"] == model_path
    with Bank.open(
        tmp_path / "bank", Memory3.from_pretrained(model_path, config=CONFIG)
    ) as bank:  # of the same model without the adapter: its texts are the same
        bank.write([Document(f"d{n}", text) for n, text in enumerate(TEXTS)], cold=True)
    assert train(settings.replace(model=name, bank=str(tmp_path / "bank")), tmp_path / "from-bank").trained is not None
    with pytest.raises(ConfigError, match=r"has rank 2 and alpha 7.*--rank 2 --alpha 7"):
        train(settings.replace(model=name, rank=3), tmp_path / "third")
    described = adapter / "adapter_config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"use_dora": True}))
    with pytest.raises(ModelError, match="is not plain LoRA"):
        train(settings.replace(model=name), tmp_path / "fourth")


def test_the_commands_with_a_bank(tmp_path: Path, model_path: str) -> None:
    """sft takes model and settings from the bank; dpo goes on from what it left; a bank of another model is refused."""
    config = CONFIG.replace(references_per_chunk=2)
    with Bank.open(tmp_path / "bank", Memory3.from_pretrained(model_path, config=config)) as bank:
        bank.write([Document(f"d{n}", text) for n, text in enumerate(TEXTS)], cold=True)
    prompts = [{"prompt": f"Who built bridge number {n}?", "answer": "The engineer."} for n in range(7)]
    pairs = [{"prompt": prompt["prompt"], "chosen": "The engineer.", "rejected": "No."} for prompt in prompts]
    some, both = write_records(tmp_path / "sft.jsonl", prompts), write_records(tmp_path / "dpo.jsonl", pairs)
    common = ["--passes", "1", "--groups", "2", "--eval-every", "0", "--train-dtype", "float32", "--json"]

    def command(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["train", *arguments, *common])

    first = command("sft", "--out", str(tmp_path / "sft"), "--data", some, "--bank", str(tmp_path / "bank"), "--epochs", "1")
    assert first.exit_code == 0, first.output
    said = json.loads(first.stdout)
    assert (said["step"], said["steps"]) == (4, 4)  # 7 prompts, 2 a step
    stored = Settings.read(tmp_path / "sft" / "settings.json")
    assert (stored.memory, stored.model, stored.rate, stored.schedule) == (config, model_path, 5e-5, "cosine")
    names = {name for group in read_groups(tmp_path / "sft" / "groups.jsonl") for name, _ in group.references}
    assert {name.partition("#")[0] for name in names} <= {"d0", "d1", "d2"}
    assert len(names) > 1
    model = said["trained"]
    refused = command("dpo", "--out", str(tmp_path / "no"), "--data", both, "--bank", str(tmp_path / "bank"), "--model", model)
    assert refused.exit_code == 1
    assert f"was written by {model_path}, not by" in " ".join(refused.output.split())
    second = command("dpo", "--out", str(tmp_path / "dpo"), "--data", both, "--model", model, "--k", "0", "--rank", "2")
    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout)["trained"] == str(tmp_path / "dpo" / "adapter")
    assert Settings.read(tmp_path / "dpo" / "settings.json").beta == 0.01
