"""The floors (docs/structure.md), our words (docs/words.md), and what no file may do.

A new folder or file at the root needs a place in `house.FLOORS`.
"""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import docstrings
import pytest
import torch
from house import FILES, SOURCE, dotted, floor, imported, is_file, tree, unit

#: These run code out of a data file.
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load"}


@pytest.mark.parametrize("module", FILES)
def test_nothing_imports_upwards_or_sideways(module):
    for target in imported(module):
        assert target in FILES, f"{module} imports {target}, which does not exist"
        same_floor = floor(target) == floor(module) and is_file(target) and is_file(module)
        allowed = floor(target) < floor(module) or unit(target) == unit(module) or same_floor
        assert allowed, f"{module} (floor {floor(module)}) imports {target} (floor {floor(target)})"


def test_no_import_cycles():
    try:
        TopologicalSorter({module: imported(module) - {module} for module in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", FILES)
def test_nothing_unsafe(module):
    for node in ast.walk(tree(module)):
        where = f"{FILES[module]}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            origins = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module or ""}
            assert not {origin.split(".")[0] for origin in origins} & UNSAFE_MODULES, where
        elif isinstance(node, ast.Call):
            assert dotted(node.func) not in UNSAFE_CALLS, where
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant), where
            assert node.value.value is False, where
        elif isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: say which errors"


def test_no_test_file_imports_another():
    """What tests share is in helper modules (`tiny`, `house`, `command_line` ...): a test file can then be changed or
    moved alone.
    """
    here = Path(__file__).parent
    for path in sorted([*here.rglob("*.py"), *(here.parent / "research").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                found = [name for name in names if any(part.startswith("test_") for part in name.split("."))]
                assert not found, f"{path}:{node.lineno}: move what is shared out of {found[0]} into a helper module"


def test_docstrings_name_parameters_and_do_not_only_point_elsewhere():
    """Of public functions and methods with two parameters or more. `python tests/docstrings.py --left` lists who does not."""
    missing, pointing, total = docstrings.survey(SOURCE)
    assert len(missing) <= 0.1 * total, missing
    assert not pointing, pointing


def private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(node):
    """The private methods and attributes that a class, or all classes of a file, give their objects."""
    names = set()
    for part in ast.walk(node):
        if isinstance(part, ast.ClassDef):
            fields = [f.target for f in part.body if isinstance(f, ast.AnnAssign)]
            names |= {f.id for f in fields if isinstance(f, ast.Name)}
        elif isinstance(part, ast.FunctionDef):
            names.add(part.name)
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and dotted(part.value) == "self":
            names.add(part.attr)
    return {name for name in names if private(name)}


@cache
def our_private_names():
    names = set().union(*(private_names(node) for m in FILES for node in ast.walk(tree(m)) if isinstance(node, ast.ClassDef)))
    # Others have attributes of these names, too: modules of torch, and named tuples, whose methods look private and are not.
    return names - {*dir(torch.nn.Module()), "_asdict", "_make", "_replace"}


def reaches(module):
    """Where a file uses a private attribute of ours on anything but ``self``, ``cls``, ``super()`` and objects of the
    same class.
    """
    own = {}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ClassDef):
            names = private_names(node)
            own |= {id(part): names for part in ast.walk(node)}
    for node in ast.walk(tree(module)):
        if not (isinstance(node, ast.Attribute) and private(node.attr) and node.attr in our_private_names()):
            continue
        is_super = isinstance(node.value, ast.Call) and dotted(node.value.func) == "super"
        if dotted(node.value) not in ("self", "cls") and not is_super and node.attr not in own.get(id(node), ()):
            yield node


@pytest.mark.parametrize("module", FILES)
def test_no_file_reaches_into_another_object(module):
    found = [f"{FILES[module]}:{node.lineno}: {dotted(node)} is private" for node in reaches(module)]
    assert not found, found


def test_a_reach_into_another_object_is_found():
    """Of `Memory3` above all, which fifteen files once reached into."""
    assert {"_state_mark", "_recall"} <= our_private_names()
    called = "\n".join(path.read_text(encoding="utf-8") for path in FILES.values())
    assert "m3._" not in called


def test_names_say_what_a_file_is_for():
    assert not {path.stem for path in FILES.values()} & {"util", "utils", "helpers", "misc", "common"}


#: Words that are ours, or that mean something of their own here. A newcomer finds each on docs/words.md; a new one needs
#: a line there, and a reason.
OWN_WORDS = {
    "memory",
    "reference",
    "bank",
    "selector",
    "budget",
    "prefix",
    "chunk clock",
    "recall",
    "lane",
    "stretch",
    "gap",
    "memory temperature",
    "lazy reference",
    "fingerprint",
    "proof",
    "codebook",
}


#: Words that were ours, and the field's for them. Names of files, classes and functions no longer have them.
RETIRED_WORDS = {
    "beginning": "prefix",
    "foretold": "predicted",
    "foretelling": "prediction",
    "blanks": "cloze",
    "keeping": "retention",
}


def test_our_words_are_defined_in_the_documentation():
    """Each with a definition of one or two sentences, and the nearest word of the field."""
    page = (SOURCE.parents[1] / "docs" / "words.md").read_text(encoding="utf-8").split("## Renamed")[0]
    rows = re.findall(r"^\| \*\*(.+?)\*\*[^|]*\| (.+?) \| (.+?) \|$", page, re.MULTILINE)
    assert {word for word, _, _ in rows} == OWN_WORDS
    for word, definition, nearest in rows:
        assert 1 <= len(re.findall(r"[.?](?: |$)", definition)) <= 3, f"{word}: say it in one or two sentences"
        assert nearest, f"{word}: what does the field call it?"


def test_retired_words_do_not_come_back_as_names():
    for module in FILES:
        names = {module.rpartition(".")[2]}
        names |= {node.name for node in ast.walk(tree(module)) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        for word, field in RETIRED_WORDS.items():
            found = {name for name in names if word in re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_")}
            assert not found, f"{module}: {', '.join(found)}: the field's word is {field}"


#: They are of classes of vLLM, which has an environment of its own.
IN_VLLM = {"memory3.vllm.attention", "memory3.vllm.connector"}
IMPORT_EVERYTHING = """
import importlib, json, sys
from transformers.integrations import sdpa_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.llama import modeling_llama

def registries():
    tables = {"attention": dict(ALL_ATTENTION_FUNCTIONS), "mask": dict(ALL_MASK_ATTENTION_FUNCTIONS)}
    tables["module"] = {**vars(modeling_llama.LlamaAttention), **vars(modeling_llama.LlamaModel), **vars(sdpa_attention)}
    tables["config"] = dict.fromkeys(CONFIG_MAPPING.keys())
    return {f"{table}.{name}": id(value) for table, entries in tables.items() for name, value in entries.items()}

before = registries()
import memory3
heavy = sorted({"lancedb", "sentence_transformers", "sklearn"} & set(sys.modules))
from memory3.errors import MissingDependency
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except MissingDependency:
        pass
after = registries()
print(json.dumps({"heavy": heavy, "changed": sorted(k for k in before | after if before.get(k) != after.get(k))}))
"""


@pytest.fixture(scope="module")
def after_import():
    names = json.dumps([name for name in FILES if not name.endswith("__main__") and name not in IN_VLLM])
    done = subprocess.run([sys.executable, "-c", IMPORT_EVERYTHING, names], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_changes_nothing_in_transformers(after_import):
    assert after_import["changed"] == []


def test_importing_the_package_loads_no_bank_and_no_embedder(after_import):
    """They take seconds, and not every use of the library needs them."""
    assert after_import["heavy"] == []
