"""What every command promises: a short first help screen, examples that can be typed, --json, --config, exit status."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from memory3.cli.app import app
from memory3.cli.command import Command
from memory3.cli.config_file import as_defaults, option_names, read_values
from memory3.cli.deferred import PACKAGES
from memory3.cli.reference import reference
from memory3.cli.train.run import settings_of
from memory3.errors import ConfigError
from memory3.training.settings import SFT, Mixture, Settings

#: Rows of a first help screen at most, --help among them.
MOST = 12


def commands(group=None, name="memory3"):
    """Every command by the words that call it, the commands of groups too."""
    group = group or get_command(app)
    found = {}
    for word, command in group.commands.items():
        nested = f"{name} {word}"
        found |= commands(command, nested) if hasattr(command, "commands") else {nested: command}
    return found


COMMANDS = commands()


def help_of(name, option="--help"):
    result = CliRunner().invoke(app, [*name.split()[1:], option], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
    assert result.exit_code == 0
    return result.stdout


def rows(text):
    """The options that a help screen shows, by their first name."""
    lines = [line.strip("│ *\n") for line in text.splitlines() if line.startswith("│")]
    return {line.split()[0] for line in lines if line.startswith("--")}


def names_of(command):
    return {next(opt for opt in p.opts if opt.startswith("--")) for p in command.params if p.param_type_name == "option"}


def examples(text):
    """The command lines of a help text, each from the word ``memory3`` on."""
    found = []
    for line in inspect.cleandoc(text or "").partition("Examples[/bold]")[2].splitlines():
        words = shlex.split(line)
        if "memory3" in words or any(word.endswith("/memory3)") for word in words):
            words = words[words.index("memory3") + 1 :] if "memory3" in words else words[words.index("memory3)") + 1 :]
            found.append(words)
    return found


def test_every_command_is_walked():
    assert len(COMMANDS) == 27
    assert {"memory3 ask", "memory3 train sft", "memory3 train two-stage", "memory3 lm-eval"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_help_screen_is_short(name):
    shown = rows(help_of(name))
    assert "--help" in shown
    assert len(shown) <= MOST, f"{name} shows {len(shown)} options: give some of them a rich_help_panel"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_all_shows_every_option(name):
    command = COMMANDS[name]
    everything = {name_.split("/")[0] for name_ in names_of(command)}
    if "--help-all" not in everything:
        assert everything <= {row.split("/")[0] for row in rows(help_of(name))}
        return
    shown = rows(help_of(name, "--help-all"))
    assert len(shown) == len(everything) + 1
    assert len(rows(help_of(name))) < len(shown)
    assert "More options with --help-all: " in help_of(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_can_be_typed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = examples(COMMANDS[name].help)
    assert found, f"{name} has no examples"
    assert any(words[: len(name.split()) - 1] == name.split()[1:] for words in found), f"no example of {name} calls it"
    for words in found:
        command, rest = get_command(app), list(words)
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        command.make_context("example", rest)  # unknown options, wrong values and missing ones end here


def test_an_example_with_an_option_that_is_not_there_would_be_found():
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["memory3 ask"].make_context("example", ["why?", "--bnak", "bank"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json(name):
    (option,) = [p for p in COMMANDS[name].params if "--json" in p.opts]
    assert option.is_flag
    assert "--json" in rows(help_of(name))


@pytest.fixture
def harness(monkeypatch):
    """A stand-in for lm_eval that writes results where it is told to, as the real one does, and prints a table."""

    def cli_evaluate():
        place = Path(sys.argv[sys.argv.index("--output_path") + 1])
        print("| a table |")
        if "ls" not in sys.argv:
            target = place if place.suffix == ".json" else place / "model" / "results_2026.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps({"results": {"argv": sys.argv[1:3]}}))

    for name in ("lm_eval", "lm_eval.models", "lm_eval.__main__", "lm_eval.api", "lm_eval.api.registry"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lm_eval"].models = sys.modules["lm_eval.models"]
    sys.modules["lm_eval.__main__"].cli_evaluate = cli_evaluate
    sys.modules["lm_eval.api.registry"].model_registry = {"memory3": "known"}
    monkeypatch.setattr(sys, "argv", [])


@pytest.mark.parametrize("where", [[], ["--output_path", "out"], ["--output_path", "out/made.json"]])
def test_lm_eval_as_json(where, harness, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for name in ("results_old.json", "made.json"):
        (tmp_path / "out" / name).write_text('{"results": {"argv": ["old"]}}')
    result = CliRunner().invoke(app, ["lm-eval", "--json", "--tasks", "arc_easy", *where])
    assert json.loads(result.stdout) == {"results": {"argv": ["--tasks", "arc_easy"]}}
    assert "a table" in result.stderr


def test_lm_eval_without_results_as_json(harness):
    result = CliRunner().invoke(app, ["lm-eval", "--json", "ls"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--json goes with a run of tasks" in " ".join(result.stderr.split())


def test_the_exit_status_is_in_the_help_and_the_docs():
    said = " ".join(help_of("memory3").split())
    assert "Exit status: 0 done, 1 an error or a check that found something, 2 wrong usage, 130 interrupted." in said
    assert "| 130 |" in reference()


def test_the_reference_in_the_docs_is_what_the_commands_say():
    stored = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
    assert stored == reference(), "write it anew: python -m memory3.cli.reference > docs/commands.md"
    assert max(map(len, stored.splitlines())) <= 127
    for name, command in COMMANDS.items():
        assert f"\n## {name}\n" in stored
        assert all(f"`{option}" in stored for option in names_of(command))


# ---- imports -------------------------------------------------------------------------------------------------------------

DEFERRED = """
import json, sys
from memory3.cli.deferred import alone, defer, without
from memory3.garbage import collecting_later
defer()
import gc
with collecting_later(), without():
    alone()
    import transformers.models.llama.modeling_llama, lancedb, memory3.bank, memory3.llm
    assert not gc.isenabled()
waits = [name for name in sys.argv[1:] if "_memory3_loader" in vars(sys.modules[name])]
unused = sorted({"torch._dynamo.eval_frame", "torch.distributed.tensor", "pandas", "accelerate"} & set(sys.modules))
import torch
left_alone, constant = torch.compiler.disable(lambda: torch.compiler.is_compiling()), lambda: 3
assert torch._dynamo.assume_constant_result(constant) is constant and not left_alone()
assert "_memory3_loader" in vars(sys.modules["torch._dynamo"])
import pandas, scipy
import lance_namespace_urllib3_client as client
import transformers
found = [client.TableApi.__name__, client.__version__ != "", transformers.models.llama.LlamaConfig.__name__]
from transformers.models import gpt2
found += [gpt2.__name__, transformers.GPT2Config.__name__, hasattr(client, "nothing"), gc.isenabled()]
try:
    transformers.models.nothing_of_this_name
except AttributeError:
    found += ["none"]
compiled = torch.compile(lambda x: (x + left_alone(), x + torch.compiler.is_compiling()), backend="eager")
found += [int(number) for number in compiled(torch.tensor(4))] + [constant._dynamo_marked_constant]
left = [name for name in sys.argv[1:] if "_memory3_loader" in vars(sys.modules[name])]
heavy = sorted({"sentence_transformers", "sklearn", "pypdf", "chardet", "faiss"} & set(sys.modules))
print(json.dumps([waits, found, left, heavy + unused]))
"""


def test_packages_wait_and_then_are_what_they_always_were():
    done = subprocess.run([sys.executable, "-c", DEFERRED, *PACKAGES], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    waits, found, left, heavy = json.loads(done.stdout.splitlines()[-1])
    assert waits == list(PACKAGES)
    assert found == [
        "TableApi",
        True,
        "LlamaConfig",
        "transformers.models.gpt2",
        "GPT2Config",
        False,
        True,
        "none",
        4,
        5,
        True,
    ]
    assert (left, heavy) == ([], [])


# ---- --config ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"memory3 lm-eval"}))
def test_every_command_takes_a_config_file(name):
    assert isinstance(COMMANDS[name], Command)
    assert "--config" in rows(help_of(name))


def parameters(name, *arguments):
    return COMMANDS[name].make_context("x", [str(argument) for argument in arguments]).params


@pytest.mark.parametrize(
    "text",
    [
        '{"bank": "b", "max-new-tokens": 7, "where": ["a=1", "b=2"], "stream": false, "k": null, "gap": 0.25}',
        'bank = "b"\nmax_new_tokens = 7\nwhere = ["a=1", "b=2"]\nstream = false\ngap = 0.25\n',
    ],
)
def test_a_file_is_as_if_its_options_had_been_typed(text, tmp_path):
    path = tmp_path / ("c.json" if text.startswith("{") else "c.toml")
    path.write_text(text)
    typed = ["--bank", "b", "--max-new-tokens", 7, "--where", "a=1", "--where", "b=2", "--no-stream", "--gap", 0.25]
    assert parameters("memory3 ask", "why?", "--config", path) == parameters("memory3 ask", "why?", *typed)


def test_the_command_line_wins_over_the_file(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"bank": "b", "k": 3, "stream": True}))
    given = parameters("memory3 ask", "why?", "--k", 2, "--config", path, "--no-stream")
    assert (given["bank"], given["k"], given["stream"]) == ("b", 2, False)


def test_what_a_command_needs_may_stand_in_the_file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('bank = "b"\n')
    assert parameters("memory3 info", "--config", path)["bank"] == "b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"adaptr": "m"}', "'adaptr' is no option of x. Did you mean 'adapter'?"),
        ('{"zzzzzz": 1}', "`x --help-all` lists the options"),
        ('{"config": "other.json"}', "'config' is no option"),
        ('{"help": true}', "'help' is no option"),
        ('{"k": [1]}', "'k' is one number or one text, not [1]"),
        ('{"k": true}', "'k' is one number or one text, not True"),
        ('{"json": "yes"}', "'json' is on or off: write true or false, not 'yes'"),
        ('{"max-new-tokens": 1, "max_new_tokens": 2}', "is given twice"),
        ("[1]", "must hold one object"),
        ("k = 1", "cannot be read"),
        (b"\xff\xfe{", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_meant_is_wrong_usage(text, said, tmp_path):
    path = tmp_path / "c.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(typer.BadParameter) as raised:
        parameters("memory3 ask", "why?", "--config", path)
    assert said in str(raised.value)


def test_wrong_values_of_a_file_are_wrong_usage(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"bank": "b", "k": "many"}')
    with pytest.raises(Exception, match="valid integer") as raised:
        parameters("memory3 ask", "why?", "--config", path)
    assert raised.value.exit_code == 2
    assert CliRunner().invoke(app, ["ask", "why?", "--config", str(path)]).exit_code == 2


def test_a_number_in_a_file_reaches_a_text_option():
    parameters_ = COMMANDS["memory3 plan"].params
    assert as_defaults(parameters_, {"references": 112_000_000, "zipf": 1}, "f", "x") == {
        "references": "112000000",
        "zipf": "1",
    }
    assert option_names(parameters_)["hours"].name == "hours"


def settings(name, folder, *arguments, defaults=None):
    """The settings that a command of ``memory3 train`` would run with."""
    context = COMMANDS[f"memory3 train {name}"].make_context("x", ["--out", str(folder), *map(str, arguments)])
    return settings_of(folder, context, defaults or Settings())


def test_the_settings_of_a_run_are_a_config_file_of_another(tmp_path):
    """settings.json, whole: the file that `memory3 train` has always taken."""
    was = Settings(steps=300, rate=2e-3, dtype="float32", mixture=Mixture.of({"memory": 1, "none": 3}), data=("a", "b"))
    was = was.replace(memory=was.memory.replace(references_per_chunk=3, dtype="float32"))
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(was.to_dict()))
    assert settings("continual", tmp_path / "run", "--config", path) == was
    assert settings("sft", tmp_path / "run", "--config", path, defaults=SFT) == was
    changed = settings("continual", tmp_path / "run", "--config", path, "--steps", 301, "--dtype", "float16", "--k", 2)
    assert (changed.steps, changed.dtype, changed.memory.dtype) == (301, "float32", "float16")
    assert changed.memory.references_per_chunk == 2


def test_settings_and_options_in_one_file_of_training(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        'weight-decay = 0.5\nk = 4\nbudget = "uniform:3"\nmixture = "memory=1,none=1"\n[memory]\nchunk_length = 32\n'
    )
    made = settings("sft", tmp_path / "run", "--config", path, defaults=SFT)
    assert (made.weight_decay, made.rate, made.passes) == (0.5, SFT.rate, SFT.passes)
    assert (made.memory.references_per_chunk, made.memory.chunk_length) == (4, 32)
    shares = {kind: share for kind, share in made.mixture.shares().items() if share}
    assert (str(made.memory.budget), shares) == ("uniform:3", {"memory": 1, "none": 1})


def test_a_run_that_is_resumed_takes_no_config_file(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(Settings().to_dict()))
    path = tmp_path / "c.json"
    path.write_text('{"steps": 3}')
    assert settings("continual", tmp_path, "--resume") == Settings()
    with pytest.raises(ConfigError, match="leave config out"):
        settings("continual", tmp_path, "--resume", "--config", path)


def test_unknown_settings_of_training_are_refused(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"stepps": 3}')
    with pytest.raises(typer.BadParameter, match="Did you mean 'steps'"):
        settings("continual", tmp_path, "--config", path)


def test_the_options_of_a_benchmark_may_stand_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("memory3.benchmarks.run", lambda name, options: {"name": name, "options": options})
    path = tmp_path / "c.json"
    path.write_text('{"repeats": 5, "tokens-in": 7, "json": true}')
    result = CliRunner().invoke(app, ["bench", "decode", "--config", str(path), "--repeats", "6"])
    assert json.loads(result.stdout)["options"] == {"repeats": "6", "tokens_in": "7"}


def test_the_two_formats_are_told_by_the_name(tmp_path):
    (tmp_path / "c.toml").write_text("k = 1")
    assert read_values(tmp_path / "c.toml") == {"k": 1}


@pytest.mark.parametrize("given", [None, "7"])
def test_what_onednn_keeps_is_bounded_before_torch_is_loaded(given):
    """A server grew by what oneDNN prepared for each length of a prompt. Who sets the bound is not overruled."""
    names = ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"]
    code = (
        "import os, sys\nfrom memory3.cli import app\n"
        f"app.app = lambda **_: print('torch' in sys.modules, *(os.environ[name] for name in {names}))\napp.main()"
    )
    env = {name: value for name, value in os.environ.items() if name not in names}
    env |= dict.fromkeys(names, given) if given else {}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", *[given or "256"] * 2]
