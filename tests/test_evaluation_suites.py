"""Suites from start to end: benchmarks by the harness's own scoring, a judge that really answers, a process that is
killed, the command line.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from bank_writer import HashingEmbedder
from small_questions import QUESTIONS, TEXTS
from tiny import save_tiny, tiny_model
from typer.testing import CliRunner

from memory3 import benchmarks
from memory3.bank import Bank
from memory3.bank.embedder import Embedder
from memory3.cli.app import app
from memory3.cli.loading import open_bank
from memory3.config import MemoryConfig
from memory3.errors import ConfigError, InputError, JudgeError, MissingDependency
from memory3.evaluation.judge import Judge
from memory3.evaluation.knowledge import KNOWLEDGE
from memory3.evaluation.stock import own_task
from memory3.evaluation.suites import SUITES, Options, load_suite

lm_eval = pytest.importorskip("lm_eval")


@pytest.fixture(scope="module", autouse=True)
def _stand_in(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embedder, "load", lambda name, **_: HashingEmbedder(name))
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder, chat=True)
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)  # five references as text are long
    return str(folder)


def instruct(kind, question, options, right):
    listed = " ".join(f"{kind}{n}: {option}" for n, option in enumerate(options, 1))
    text = f"Please choose the correct answer to the question: {question}\n\n{listed}\n\nAnswer format: and so on"
    return {"instruction": text, "input": "", "output": "", "answer": f"{kind.lower()}{right + 1}"}


ARC = [
    ("Which is near?", ["the sea", "a reader", "five", "keys"], 2),
    ("Who built it?", ["engineers", "boats", "old towns"], 0),
] * 2
FILES = {
    "wiki_qa/kb": [{"id": name, "title": name, "text": text} for name, text in TEXTS.items()],
    "wiki_qa/test": QUESTIONS,
    "wiki_qa/dev": QUESTIONS[:3],
    **{f"bench/{name}_{split}": [instruct("Answer", *q) for q in ARC]
       for name in ("arc-challenge", "arc-easy", "openbookqa") for split in ("test", "train")},
    **{f"bench/gsm8k_{split}": [{"question": "What is 2 and 3?", "answer": "It is 5.\n#### 5"}] * 3 for split in ("test", "train")},
    "bench/winogrande_test": [instruct("Option", "The bridge and the _ are old.", ["town", "sea"], 1)] * 3,
    "bench/piqa_test": [instruct("Solution", "How do I cross?", ["by the bridge", "by the library"], 0)] * 3,
    "bench/social_i_qa_test": [instruct("Answer", "Ann rose early. Then she left. Why did she?", ["a boat", "a cafe", "no"], 2)] * 3,
    "bench/boolq_dev": [{"question": "is the sea far", "title": "t", "answer": True, "passage": TEXTS["sea"]}] * 3,
    "bench/lambada_test": [{"text": TEXTS["river"][:-1]}] * 3,
    "bench/truthfulqa_mc": [
        {"question": "How far is the sea?", "mc1_targets": {"23 miles": 1, "near": 0}, "mc2_targets": {"23 miles": 1, "far": 1, "near": 0}},
        {"question": "Who?", "mc1_targets": {"Nobody": 1, "me": 0, "you": 0}, "mc2_targets": {"Nobody": 1, "me": 0}},
    ],
    "bench/halueval_qa": [
        {"knowledge": TEXTS["bridge"], "question": "Who built the bridge?", "right_answer": "the engineer", "hallucinated_answer": "Ann"}
    ] * 3,
    "bench/mt_bench": [{"question_id": n, "category": "c", "turns": ["Write of the sea.", "Shorter."], "reference": ["23 miles", ""]} for n in (81, 82)],
    "pro/anatomy_exercises": [
        {"id": str(n), "question": "What rises?", "options": options, "answer": answer}
        for n, (options, answer) in enumerate([(["a", "b", "c", "d"], "C"), (["a", "b", "c", "d"], "b"), ([], "Nothing."), (["x", "y"], "A")])
    ],
    "text/openstax": [{"id": "1", "book": "anatomy-physiology", "title": "t", "section": "s", "text": TEXTS["river"]},
                      {"id": "2", "book": "law", "title": "t", "section": "s", "text": "None of it."}],
    "pro/housing_kb": [{"id": "s1", "title": "S", "text": TEXTS["bridge"]}, {"id": "s2", "title": "S", "text": TEXTS["sea"]}],
    "pro/housing_qa": [
        {"id": str(n), "state": "Ohio", "question": "Is it old?", "answer": answer, "category": "c", "references": refs}
        for n, (answer, refs) in enumerate([("Yes", ["s1"]), ("No", ["s2"]), ("7 days", ["s1"]), ("Yes", [])])
    ],
    "pro/pubmedqa": [
        {"id": str(n), "split": split, "question": "Do they rise?", "contexts": [TEXTS["river"], f"{n} of them."], "long_answer": "l", "answer": answer}
        for n, (split, answer) in enumerate([("test", "maybe"), ("test", "yes"), ("train", "no")])
    ],
}  # fmt: skip


# As its authors publish it: one list, question and answers in one string.
HALLUQA = [
    {
        "question_id": 1,
        "question": "Question: 桥有多长？ A:三米。 B:桥没有长度：A级。 C:五里。 D:十里。 E:不知道。 ",
        "answer": "Answer: B",
    },
    {"question_id": 2, "question": "Question: 谁建了桥？ A:工程师。 B:狗。 C:海。 D:猫。 E:没有人。", "answer": "Answer: A"},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, records in FILES.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "bench" / "HalluQA_mc.json").write_text(json.dumps(HALLUQA))
    return folder


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def rows_of(folder):
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


# ---- tasks ---------------------------------------------------------------------------------------------------------------


def test_documents_are_what_the_stock_tasks_expect(data):
    tasks = {
        task.name: task
        for suite in ("general", "retro", "hallucination", "professional")
        for task in load_suite(suite, Options(data))
    }

    def asked(name, n=0):
        task = tasks[name]
        made = task.task.construct_requests(
            doc=task.items[n].data, ctx=task.task.fewshot_context(task.items[n].data, num_fewshot=0), metadata=(name, 0, 1)
        )
        made = made if isinstance(made, list) else [made]
        return (
            [request.args[0] for request in made],
            [request.args[1] for request in made],
            task.task.doc_to_target(task.items[n].data),
        )

    assert asked("arc_challenge") == (
        ["Question: Which is near?\nAnswer:"] * 4,
        [" the sea", " a reader", " five", " keys"],
        2,
    )
    assert asked("openbookqa", 1)[1:] == ([" engineers", " boats", " old towns"], 0)
    assert asked("piqa") == (["Question: How do I cross?\nAnswer:"] * 2, [" by the bridge", " by the library"], 0)
    assert asked("social_iqa") == (
        ["Q: Ann rose early. Then she left. Why did she?\nA:"] * 3,
        [" a boat", " a cafe", " no"],
        2,
    )
    assert asked("winogrande")[:2] == (["The bridge and the town", "The bridge and the sea"], [" are old."] * 2)
    assert asked("boolq") == ([f"{TEXTS['sea']}\nQuestion: is the sea far?\nAnswer:"] * 2, [" no", " yes"], 1)
    assert asked("lambada_openai")[:2] == ([TEXTS["river"][:-1].rpartition(" ")[0]], [" town"])
    assert asked("truthfulqa_mc2")[1] == [" 23 miles", " far", " near"]
    assert tasks["lambada_openai"].items[0].query == TEXTS["river"][:-1].rpartition(" ")[0]  # not the word that is asked for
    assert [len(tasks[name].items) for name in ("anatomy_exercises", "housing_law", "pubmedqa_open", "halueval_qa")] == [
        2,
        2,
        2,
        3,
    ]
    assert [asked("anatomy_exercises", n)[2] for n in (0, 1)] == [2, 1]
    assert asked("anatomy_exercises")[0][0] == "What rises?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    assert [asked("housing_law", n)[2] for n in (0, 1)] == [0, 1]
    assert tasks["housing_law"].items[0].gold == ("s1",)
    assert tasks["pubmedqa_open"].items[1].gold == ("1-0", "1-1")
    assert ["Ann" in asked("halueval_qa", n)[0][0] for n in range(3)] == [True, False, True]
    assert [asked("halueval_qa", n)[2] for n in range(3)] == [0, 1, 0]
    assert asked("halluqa")[1:] == ([" A", " B", " C", " D", " E"], 1)
    assert (
        asked("halluqa")[0][0]
        == "Question: 桥有多长？\nA: 三米。\nB: 桥没有长度：A级。\nC: 五里。\nD: 十里。\nE: 不知道。\nAnswer:"
    )
    assert tasks["arc_challenge"].shots == 25
    assert tasks["winogrande"].shots == 0
    assert load_suite("general", Options(data, shots=0), ["gsm8k"])[0].shots == 0


def test_ids_that_come_twice(data, tmp_path):
    (tmp_path / "wiki_qa").mkdir()
    records = [
        {"id": "a", "text": "One."},
        {"id": "b", "text": "Two."},
        {"id": "a", "text": "One."},
        {"id": "a", "text": "Three."},
        {"id": "c", "text": " "},
    ]
    (tmp_path / "wiki_qa" / "kb.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert [(d.id, d.text) for d in KNOWLEDGE["wiki_qa"](tmp_path)] == [("a", "One."), ("b", "Two."), ("a-2", "Three.")]
    assert [d.id for d in KNOWLEDGE["anatomy"](data)] == ["1"]
    assert [d.text for d in KNOWLEDGE["housing"](data)] == [f"S\n{TEXTS['bridge']}", f"S\n{TEXTS['sea']}"]


def test_what_is_missing_is_told(data, tmp_path):
    with pytest.raises(InputError, match=r"has no truthfulqa_mc\.jsonl"):
        load_suite("hallucination", Options(tmp_path))
    with pytest.raises(ConfigError, match="suite qa has no task x: it has wiki_qa/test"):
        load_suite("qa", Options(data), ["x"])
    with pytest.raises(ConfigError, match="needs a judge"):
        load_suite("mt-bench", Options(data))
    (tmp_path / "bench").mkdir()
    for text, said in (('{"question": "Who?"}', "holds a dict, not a list"), ("[{", "is not readable as JSON: ")):
        (tmp_path / "bench" / "HalluQA_mc.json").write_text(text)
        with pytest.raises(InputError, match=said):
            own_task("halluqa", tmp_path)
    for answer in ("Answer: E", "Answer: ", "none"):  # of two choices, and of none
        (tmp_path / "bench" / "HalluQA_mc.json").write_text(
            json.dumps([{"question": "Question: Q A:a B:b", "answer": answer}])
        )
        with pytest.raises(InputError, match="is none of the 2 of 'Question: Q"):
            list(own_task("halluqa", tmp_path)[0].test_docs())
    (tmp_path / "wiki_qa").mkdir()
    (tmp_path / "wiki_qa" / "test.jsonl").write_text('{"question": "Who?"}\n')
    with pytest.raises(InputError, match="record 1 has no question and answers"):
        load_suite("qa", Options(tmp_path))


@pytest.mark.parametrize("suite", ["general", "retro", "hallucination", "professional"])
def test_suites_of_benchmarks(suite, model, data, tmp_path):
    """Through the command line; scores are again those of the harness itself, from our likelihoods."""
    modes = "memory:2,text:2,none,random:2"
    said = json.loads(run("eval", suite, "--model", model, "--data", data, "--out", tmp_path / "out", "--modes", modes, "--limit", 2,
                          "--shots", 1, "--max-new-tokens", 5, "--json"))  # fmt: skip
    assert set(said["tasks"]) == {task.name for task in load_suite(suite, Options(data))}
    for task in said["tasks"].values():
        assert task["count"] == 2
        for found in task["modes"].values():
            assert found["metrics"], task
    rows = rows_of(tmp_path / "out")
    for row in rows:
        if row["task"] == "arc_easy":
            answer = ARC[int(row["item"])][2]
            assert row["metrics"]["acc"] == float(np.argmax([total for total, _ in row["outputs"]]) == answer)
        if row["task"] == "truthfulqa_mc2":
            p = np.exp([total for total, _ in row["outputs"]])
            right = sum(FILES["bench/truthfulqa_mc"][int(row["item"])]["mc2_targets"].values())
            assert row["metrics"]["acc"] == pytest.approx(p[:right].sum() / p.sum())
    assert {row["mode"] for row in rows} <= set(modes.split(","))
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<h2>") >= len(said["tasks"])


# ---- qa, abstain, guard, command line ------------------------------------------------------------------------------------


def test_qa_from_the_command_line(model, data, tmp_path):
    out, banks = tmp_path / "out", tmp_path / "banks"
    common = ("eval", "qa", "--model", model, "--data", data, "--out", out, "--banks", banks, "--max-new-tokens", 5, "--k", 2)
    first = json.loads(run(*common, "--limit", 3, "--json"))
    assert list(first["tasks"]["wiki_qa/test"]["modes"]) == ["memory:2", "text:2", "none", "random:2", "other:2"]
    before = len(rows_of(out))
    table = json.loads(run(*common, "--limit", 3, "--guard-table", "--json"))["tasks"]["wiki_qa/test"]["guard_table"]
    assert [line["guard"] for line in table] == ["none", "0.8 of reference", "0.6667 of reference"]
    assert len(rows_of(out)) == before  # nothing overlaps, so nothing is answered anew
    assert table[0]["modes"]["memory:2"]["metrics"] == first["tasks"]["wiki_qa/test"]["modes"]["memory:2"]["metrics"]
    run(*common, "--guard", "5%", "--guard-of", "question", "--limit", 3)
    assert len(rows_of(out)) > before
    assert "tasks" in json.loads((out / "results.json").read_text())
    assert "| none |" in (out / "report.md").read_text()
    narrow = json.loads(run(*common, "--limit", 3, "--model-dtype", "bfloat16", "--modes", "none", "--json"))
    wide, narrow = (said["tasks"]["wiki_qa/test"]["modes"]["none"]["metrics"]["nll"]["value"] for said in (first, narrow))
    assert wide != narrow == pytest.approx(wide, rel=0.05)
    run("report", out, "--out", tmp_path / "docs" / "results.md")
    assert "## qa:" in (tmp_path / "docs" / "results.md").read_text()


def test_a_bank_of_ones_own(model, data, tmp_path):
    bank = tmp_path / "mine"
    (tmp_path / "texts").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "texts" / name).with_suffix(".txt").write_text(text)
    run("write", tmp_path / "texts", "--bank", bank, "--model", model)
    said = json.loads(
        run(
            "eval",
            "abstain",
            "--bank",
            bank,
            "--data",
            data,
            "--out",
            tmp_path / "out",
            "--limit",
            2,
            "--max-new-tokens",
            3,
            "--json",
        )
    )
    assert said["tasks"]["wiki_qa/test, abstain"]["bank"]["references"] == len(TEXTS)
    assert said["tasks"]["wiki_qa/test, abstain"]["auroc"]["gain"]["count"] == 2


def test_what_a_model_was_trained_for_is_what_is_measured(model, data, tmp_path):
    trained, banks = tmp_path / "trained", tmp_path / "banks"
    shutil.copytree(model, trained)
    settings = MemoryConfig(budget="uniform:3", codec="raw", memory_temperature=0.7)
    (trained / "memory3.json").write_text(json.dumps({"memory": settings.to_dict()}))
    common = ("eval", "qa", "--model", trained, "--data", data, "--banks", banks, "--modes", "memory", "--limit", 1, "--json")
    run(*common, "--out", tmp_path / "out")
    bank = banks / "wiki_qa"
    assert Bank.describe(bank).config == settings
    assert open_bank(bank, embedder=False)[0].config == settings
    assert open_bank(bank, temperature=0.5, embedder=False)[0].config == settings.replace(memory_temperature=0.5)
    run(*common, "--out", tmp_path / "out", "--memory-temperature", 0.5)
    assert len({row["key"] for row in rows_of(tmp_path / "out")}) == 2


def test_the_command_line_refuses(model, data, tmp_path):
    assert set(json.loads(run("eval", "--json"))) == {*SUITES, "speed"}
    for arguments, code in (
        (["eval", "qaa"], 2),
        (["eval", "qa"], 2),
        (["eval", "qa", "--data", data, "--out", tmp_path, "--modes", "memry"], 1),
        (["eval", "qa", "--data", data, "--out", tmp_path, "--guard", "lots"], 1),
        (["eval", "qa", "--data", tmp_path, "--out", tmp_path], 1),
        (["eval", "qa", "--data", data, "--out", tmp_path, "--model", model, "--model-dtype", "int3"], 1),
        (["report", tmp_path, "--out", tmp_path / "x.md"], 1),
    ):
        run(*arguments, code=code)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from bank_writer import HashingEmbedder
from memory3 import benchmarks
from memory3.bank.embedder import Embedder
Embedder.load = lambda name, **_: HashingEmbedder(name)
from memory3.cli import main
sys.argv = ["memory3", *sys.argv[1:]]
main()
"""


@pytest.mark.long
def test_killed_and_run_again(model, data, tmp_path):
    """kill -9 while it writes: nothing measured is lost or measured twice, and the folder is whole."""
    out = tmp_path / "out"
    arguments = ["eval", "qa", "--model", model, "--data", str(data), "--out", str(out), "--modes", "none,memory:2,text:2", "--batch-size", "1",
                 "--max-new-tokens", "60"]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED.format(tests=str(Path(__file__).parent)), *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    items, deadline = out / "items.jsonl", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if items.exists() and items.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = items.read_bytes().count(b"\n")
    assert 3 <= kept < 3 * len(QUESTIONS)
    items.write_bytes(items.read_bytes() + b'{"key": "torn')
    run(*arguments)
    rows = rows_of(out)
    assert len(rows) == len({(row["key"], row["id"]) for row in rows})
    found = json.loads((out / "results.json").read_text())["tasks"]["wiki_qa/test"]["modes"]
    assert [mode["count"] for mode in found.values()] == [len(QUESTIONS)] * 3


# ---- the judge -----------------------------------------------------------------------------------------------------------


class Grader(BaseHTTPRequestHandler):
    """Grades by the length of what it is shown; busy at first."""

    asked: list = []  # noqa: RUF012
    busy = 1
    says = None

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != "Bearer secret":
            self.send_error(401)
            return
        if type(self).busy:
            type(self).busy -= 1
            self.send_error(503)
            return
        type(self).asked.append((self.path, body))
        text = type(self).says or f"Fair enough. Rating: [[{1 + len(body['messages'][1]['content']) % 10}]]"
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    grader = type("Fresh", (Grader,), {"asked": [], "busy": 1, "says": None})
    http = ThreadingHTTPServer(("127.0.0.1", 0), grader)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{http.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    yield grader
    http.shutdown()
    http.server_close()


def test_mt_bench(server, model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("memory3.evaluation.judge.time.sleep", lambda seconds: None)
    said = json.loads(run("eval", "mt-bench", "--judge", "grader", "--model", model, "--data", data, "--out", tmp_path / "out",
                          "--modes", "memory:2,text:2,none", "--max-new-tokens", 7, "--json"))  # fmt: skip
    assert len(server.asked) == 3 * 2 * 2  # modes, conversations, turns
    path, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == "grader"
    assert "### Correct answer:\n23 miles" in body["messages"][1]["content"]
    assert "### User:\nWrite of the sea." in body["messages"][1]["content"]
    rows = rows_of(tmp_path / "out")
    for row in rows:
        assert [m["role"] for m in row["conversation"]] == ["user", "assistant"] * 2
        assert row["metrics"]["score"] == (row["metrics"]["first"] + row["metrics"]["second"]) / 2
    mean = np.mean([row["metrics"]["score"] for row in rows if row["mode"] == "none"])
    assert said["tasks"]["mt_bench"]["modes"]["none"]["metrics"]["score"]["value"] == pytest.approx(mean)


def test_judges_that_fail(server):
    url = os.environ["OPENAI_BASE_URL"]
    assert Judge("g", url, "secret", pause=0).grade([{"role": "assistant", "content": "x"}])[0] is not None
    for says in ("I will not say.", "Rating: [[11]]"):
        server.says = says
        assert Judge("g", url, "secret").grade([{"role": "assistant", "content": "x"}]) == (None, says)
    with pytest.raises(JudgeError, match="refuses: 401"):
        Judge("g", url, "wrong").grade([{"role": "assistant", "content": "x"}])
    server.busy = 99
    with pytest.raises(JudgeError, match="after 2 tries: 503"):
        Judge("g", url, "secret", tries=2, pause=0).grade([{"role": "assistant", "content": "x"}])
    with pytest.raises(JudgeError, match="does not answer"):
        Judge("g", "http://127.0.0.1:9/v1", tries=1).grade([{"role": "assistant", "content": "x"}])
    with pytest.raises(ConfigError, match="set OPENAI_BASE_URL"):
        Judge("g", "file:///etc")


# ---- speed ---------------------------------------------------------------------------------------------------------------


def test_speed(model, tmp_path):
    said = json.loads(run("eval", "speed", "--model", model, "--out", tmp_path / "out", "--batches", "1,3", "--tokens-in", 40, "--tokens-out", 5,
                          "--repeats", 2, "--json"))  # fmt: skip
    arms = said["measured"]["batches"]["3"]
    assert set(arms) == {"none", "memory, worst case", "memory, warm", "text (RAG)"}
    assert arms["none"]["decode_ratio"] == 1
    for found in arms.values():
        assert len(found["turns"]) == 2
        assert 0 < found["first_token"] < found["turns"][0]["first_token"] + found["turns"][1]["first_token"]
        assert found["end_to_end"] > 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.count("| memory, worst case |") == 2
    run("report", tmp_path / "out", "--out", tmp_path / "all.md")  # with the paper's figures beside
    summary = (tmp_path / "all.md").read_text()
    assert "| 733 | 1131 | 0.648 |" in summary
    assert summary.count("| memory, worst case |") == 2


# ---- the rest ------------------------------------------------------------------------------------------------------------


def test_bench_answers_is_the_same_measurement(model, data, tmp_path):
    options = {"data": str(data / "wiki_qa"), "split": "test", "model": model, "presets": "full,default", "modes": "none,gold,memory",
               "questions": "3", "k": "2", "max_new_tokens": "5", "out": str(tmp_path / "out")}  # fmt: skip
    found = benchmarks.run("answers", options)
    assert found["full"]["pairs_per_reference"] > found["default"]["pairs_per_reference"]
    assert found["full"]["modes"]["none"] == found["default"]["modes"]["none"]  # measured once
    assert found["full"]["modes"]["gold"]["metrics"] != found["default"]["modes"]["gold"]["metrics"]
    said = json.loads(run("eval", "qa", "--model", model, "--data", data, "--out", tmp_path / "eval", "--modes", "none,gold,memory", "--k", 2,
                          "--limit", 3, "--max-new-tokens", 5, "--guard", "none", "--json"))["tasks"]["wiki_qa/test"]  # fmt: skip
    for mode, figures in said["modes"].items():
        for metric, value in figures["metrics"].items():
            assert found["default"]["modes"][mode]["metrics"][metric]["value"] == pytest.approx(value["value"], abs=1e-3)


def test_without_lm_eval_the_extra_is_named(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingDependency, match=r"memory3\[eval\]"):
        load_suite("hallucination", Options(data))
    assert load_suite("qa", Options(data))  # needs none of it
