"""The model class of lm-evaluation-harness.

Mode none is its own ``hf`` class, and the other modes are what `Memory3` itself answers.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")

from bank_writer import HashingEmbedder  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny import save_tiny  # noqa: E402

from memory3.bank import Bank  # noqa: E402
from memory3.bank.embedder import Embedder  # noqa: E402
from memory3.errors import ConfigError, FingerprintMismatch  # noqa: E402
from memory3.evaluation.harness import Memory3LM  # noqa: E402
from memory3.llm import Memory3  # noqa: E402
from memory3.types import Document  # noqa: E402

TEXTS = {
    "bridge": "The bridge was built in 1874 by the engineer of the county, of stone from the old town.",
    "river": "The river rises in the mountains and reaches the sea near the old town.",
    "memory": "Memories are keys and values; the reader reads them while the answer is being written.",
}
QUESTIONS = [
    ("Who built the bridge?", [" The engineer of the county", " The reader", " Nobody at all, it was always there"]),
    ("Where does the river reach the sea?", [" Near the old town", " In the mountains"]),
    ("What are memories? " * 12 + "Say.", [" Keys", " Values", " Both of them are right"]),
]


@pytest.fixture(scope="module", autouse=True)
def _stand_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embedder, "load", lambda name, **_: HashingEmbedder(name))
        yield


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "chat"])
def path(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), chat=request.param)


@pytest.fixture(scope="module")
def bank_path(path, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("bank") / "bank")
    m3 = Memory3.from_pretrained(path)
    with Bank.open(folder, m3, embedder="hashing") as bank:
        bank.write(Document(name, text) for name, text in TEXTS.items())
    return folder


def requests(kind, *arguments):
    return [Instance(kind, {}, argument, n, metadata=("test", n, 1)) for n, argument in enumerate(arguments)]


PAIRS = [(question, answer) for question, answers in QUESTIONS for answer in answers]
ROLLING = [(text * 3,) for text in TEXTS.values()]
WRITTEN = [
    (question, {"until": ["e"], "max_gen_toks": length, "do_sample": False})
    for (question, _), length in zip(QUESTIONS, (3, 7, 7), strict=True)
]


@pytest.mark.parametrize("size", [1, 3])
def test_mode_none_is_the_hf_class_to_the_last_digit(path, bank_path, size):
    stock = HFLM(pretrained=path, dtype="float32", batch_size=size, device="cpu")
    ours = Memory3LM(pretrained=path, mode="none", bank=bank_path, batch_size=size, device="cpu")
    for kind, arguments in (
        ("loglikelihood", [*PAIRS, ("", " Nothing")]),
        ("loglikelihood_rolling", ROLLING),
        ("generate_until", WRITTEN),
    ):
        wanted, got = (getattr(lm, kind)(requests(kind, *arguments)) for lm in (stock, ours))
        assert got == wanted, kind  # no tolerance


def slow(path, bank_path, mode, context, continuation, k):
    """Likelihood token by token: what the model writes next, read from a forward pass of its own each time."""
    m3 = Memory3.from_pretrained(path)
    start = m3.tokenizer(context)["input_ids"]
    answer = m3.tokenizer(context + continuation)["input_ids"][len(start) :]
    total, greedy = 0.0, True
    with Bank.open(bank_path, m3, create=False) as bank, torch.no_grad():
        if mode == "text":
            text = [t for t in start if t not in m3.tokenizer.all_special_ids][-64:]
            hits = bank.search([m3.tokenizer.decode(text).strip()], k)[0]
            names = [hit.reference_id for hit in hits]
            start = m3.frame.insert_text(start, [r.token_ids for r in bank.references(names)])
        for n, token in enumerate(answer):
            row = torch.tensor([[*start, *answer[:n]]])
            if mode == "memory":
                with m3.recall(bank, k=k, prompt=row.tolist(), answer_tokens=[n]):
                    logits = m3.model(row).logits
            else:
                logits = m3.model(row).logits
            logs = torch.log_softmax(logits[0, -1], dim=-1)
            total += float(logs[token])
            greedy &= int(logs.argmax()) == token
    return total, greedy


@pytest.mark.parametrize("mode", ["memory", "text"])
def test_likelihoods_are_those_of_one_token_after_the_other(path, bank_path, mode):
    lm = Memory3LM(pretrained=path, mode=mode, bank=bank_path, batch_size=3, device="cpu", k=2, guard="none")
    found = lm.loglikelihood(requests("loglikelihood", *PAIRS))
    for n in (0, 2, 3, 6):
        total, greedy = slow(path, bank_path, mode, *PAIRS[n], 2)
        assert found[n][0] == pytest.approx(total, abs=2e-3)
        assert found[n][1] == greedy
    none = Memory3LM(pretrained=path, mode="none", batch_size=3, device="cpu").loglikelihood(requests("loglikelihood", *PAIRS))
    assert all(abs(a - b) > 1e-3 for (a, _), (b, _) in zip(found, none, strict=True))  # it does read something


@pytest.mark.parametrize("mode", ["memory", "text"])
def test_answers_are_the_same_alone_and_in_a_batch(path, bank_path, mode):
    alone, together = (
        Memory3LM(pretrained=path, mode=mode, bank=bank_path, batch_size=size, device="cpu", k=2) for size in (1, 3)
    )
    texts = [lm.generate_until(requests("generate_until", *WRITTEN)) for lm in (alone, together)]
    assert texts[0] == texts[1]
    rolling = [lm.loglikelihood_rolling(requests("loglikelihood_rolling", *ROLLING)) for lm in (alone, together)]
    assert rolling[0] == pytest.approx(rolling[1], abs=1e-3)


def test_what_is_scored_does_not_choose_its_own_memories(path, bank_path):
    """The first 64 tokens of an answer read what its question found, whatever they say."""
    lm = Memory3LM(pretrained=path, mode="memory", bank=bank_path, batch_size=1, device="cpu", k=1)
    asked = []
    search = lm.bank.search
    lm.bank.search = lambda queries, k, where=None: asked.extend(queries) or search(queries, k, where)
    lm.loglikelihood(requests("loglikelihood", ("Who built it?", " " + TEXTS["river"])))
    assert asked == ["Who built it?"]


def test_the_guard_holds_back_what_quotes_the_question(path, bank_path):
    for guard, dropped in (("none", 0), ("2/3", 1)):
        lm = Memory3LM(pretrained=path, mode="memory", bank=bank_path, batch_size=1, device="cpu", k=3, guard=guard)
        lm.loglikelihood(requests("loglikelihood", (TEXTS["river"][:-1] + "?", " Yes")))
        assert lm.bank.dropped == dropped


def test_the_model_is_by_default_the_one_that_wrote_the_bank(path, tmp_path):
    """With its adapter."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    out, into = Memory3.from_pretrained(path).model.model.layers[1].self_attn.o_proj.weight.shape
    name = "base_model.model.model.layers.1.self_attn.o_proj.lora_{}.weight"
    halves = {name.format("A"): torch.randn(2, into), name.format("B"): torch.randn(out, 2)}
    save_file(halves, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    m3 = Memory3.from_pretrained(path, adapter=str(adapter))
    with Bank.open(tmp_path / "bank", m3, embedder="hashing") as bank:
        bank.write(Document(name, text) for name, text in TEXTS.items())
    lm = Memory3LM(bank=str(tmp_path / "bank"), batch_size=1, device="cpu", k=2)
    assert lm.m3.name == m3.name
    found = lm.loglikelihood(requests("loglikelihood", *PAIRS[:1]))
    same = Memory3LM(pretrained=m3.name, bank=str(tmp_path / "bank"), batch_size=1, device="cpu", k=2)
    assert same.loglikelihood(requests("loglikelihood", *PAIRS[:1])) == found
    with pytest.raises(FingerprintMismatch):
        Memory3LM(pretrained=path, bank=str(tmp_path / "bank"), batch_size=1, device="cpu")


def test_wrong_arguments_are_told(path):
    with pytest.raises(ConfigError, match="'memories' is unknown: use one of memory, text, none"):
        Memory3LM(pretrained=path, mode="memories")
    with pytest.raises(ConfigError, match="'text' needs a bank"):
        Memory3LM(pretrained=path, mode="text")


TASK = """
task: bridges
dataset_path: json
dataset_kwargs: {data_files: {test: QUESTIONS}}
output_type: multiple_choice
test_split: test
fewshot_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{answers}}"
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_stock_tasks_and_shots(path, bank_path, tmp_path, monkeypatch):
    """Through lm_eval's own evaluator, few-shot: ours in mode none and ``hf`` give the same samples."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "questions.jsonl"
    file.write_text(
        "".join(json.dumps({"question": q, "answers": [a.strip() for a in answers]}) + "\n" for q, answers in QUESTIONS)
    )
    (tmp_path / "bridges.yaml").write_text(TASK.replace("QUESTIONS", str(file)))
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=str(tmp_path))
    found = {}
    for name, lm in {
        "hf": HFLM(pretrained=path, dtype="float32", batch_size=3, device="cpu"),
        "none": Memory3LM(pretrained=path, mode="none", batch_size=3, device="cpu"),
        "memory": Memory3LM(pretrained=path, mode="memory", bank=bank_path, batch_size=3, device="cpu", k=2),
    }.items():
        result = simple_evaluate(lm, tasks=["bridges"], num_fewshot=1, task_manager=manager, bootstrap_iters=0)
        found[name] = [sample["resps"] for sample in result["samples"]["bridges"]]
    assert found["none"] == found["hf"]
    assert found["memory"] != found["hf"]


@pytest.mark.long
def test_our_command_makes_the_class_known():
    arguments = ["memory3", "lm-eval", "run", "--model", "memory3", "--tasks", "nothing-of-this-name"]
    code = f"import sys; from memory3.cli import main; sys.argv = {arguments}; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode != 0
    assert "nothing-of-this-name" in done.stdout + done.stderr
    from importlib.metadata import entry_points

    (ours,) = entry_points(group="lm_eval.models", name="memory3")
    assert ours.load() is Memory3LM
