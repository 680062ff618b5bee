"""The documentation: what it says of commands, options, code, modules and words is so, and its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import structure
import typer

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "research").glob("*.md")),
]
TEXT = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXT["README.md"]
#: Pages that say what docstrings say.
GENERATED = {"docs/commands.md", "docs/families.md", "docs/structure.md"}
#: Somebody's documents, as the code calls them where it explains paths.
EXAMPLES = {"docs/a.md", "docs/guide.md"}
#: Pages with figures of the default model.
WITH_FIGURES = ("README.md", "docs/measured.md", "docs/training.md", "docs/evaluation.md", "docs/planner.md", "docs/usage.md")


def fenced(text, language=""):
    """The contents of code blocks."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def prose(text):
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchor(heading):
    """The anchor of a heading, as code hosts and the site make it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", TEXT)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", TEXT[page], flags=re.DOTALL | re.MULTILINE))
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, name = link.partition("#")
        target = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert target.is_file(), f"{page}: {link} does not exist"
        if name:
            headings = re.findall(r"^#+ (.+)$", prose_free(target), re.MULTILINE)
            assert name in map(anchor, headings), f"{page}: {link}: no such heading"


def prose_free(path):
    """A page without code blocks, whose comments look like headings."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_every_page_is_in_the_navigation_of_the_site():
    import tomllib

    def files(entry):
        return (
            [entry]
            if isinstance(entry, str)
            else [name for part in (entry if isinstance(entry, list) else entry.values()) for name in files(part)]
        )

    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    assert sorted(files(site["nav"])) == sorted(TEXT)


def test_files_that_the_code_and_the_pages_name_exist():
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")}
    for where, text in (sources | TEXT).items():
        for name in re.findall(r"(?<![\w/.])(?:docs|research)/[\w/-]+\.(?:md|json|png|svg|py)\b", text):
            assert name in EXAMPLES or (ROOT / name).is_file(), f"{where} names {name}, which does not exist"


def test_structure_is_that_of_the_tree():
    assert TEXT["docs/structure.md"] == structure.page(), "`make structure` writes docs/structure.md anew"


def test_the_readme_fits_two_screens():
    before, title, after = README.partition("## Serve it")
    second, between, rest = after.partition("## What it answers")
    assert title
    assert between
    assert len((before + between + rest).split()) <= 450
    assert len(second.split()) <= 70
    assert len(re.findall(r"^!\[", README, re.MULTILINE)) == 2  # the figures, and the page
    (code,) = fenced(README, "python")
    assert len([line for line in code.splitlines() if line]) == 5
    tables = re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)
    assert [len(table.splitlines()) - 2 for table in tables] == [4]


def test_make_has_the_targets_that_are_named():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for text in TEXT.values() for name in re.findall(r"^make (\w+)", "\n".join(fenced(text)), re.MULTILINE)}
    assert {"demo", "test"} <= named <= targets


def command_lines(text):
    """``memory3 ...`` of the code blocks, with lines that go on joined."""
    for block in fenced(text):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if match := re.match(r"(?:\$ )?(?:echo .* \| )?memory3 (.*)", line):
                yield shlex.split(match[1], comments=True)


@pytest.mark.parametrize("page", [page for page in TEXT if not page.startswith("research/")])
def test_commands_and_options_exist(page):
    from memory3.cli.app import app

    for words in command_lines(TEXT[page]):
        command = typer.main.get_command(app)
        said = list(words)
        while said and hasattr(command, "get_command"):
            name = said.pop(0)
            command = command.get_command(typer.Context(command), name)
            assert command, f"{page}: memory3 {' '.join(words)}: no command {name}"
        if command.name in ("bench", "lm-eval"):  # their options are those of what they run
            continue
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        for word in said:
            if re.fullmatch(r"-[a-z]|--[a-z].*", word):
                assert word.partition("=")[0] in known, f"{page}: memory3 {' '.join(words)}: no option {word}"


@pytest.mark.parametrize("page", WITH_FIGURES)
def test_pages_with_figures_say_what_the_default_model_is(page):
    assert "Q4_1" in TEXT[page]
    assert "de-quantise" in TEXT[page]
    assert "as the model was published" not in TEXT[page]


@pytest.mark.parametrize("page", [page for page in TEXT if page.startswith("docs/") and page not in GENERATED])
def test_words_that_were_renamed_are_gone(page):
    text = prose(TEXT[page]).partition("## Renamed")[0]
    for word in ("beginning", "foretold", "foretell", "code book", "cold", "keeping"):
        assert not re.search(rf"\b{word}s?\b(?! start)", text, re.IGNORECASE), (
            f"{page}: {word}: docs/words.md has its new name"
        )


@pytest.mark.parametrize("page", TEXT)
def test_sources_that_are_not_in_the_repository_are_not_cited(page):
    assert not re.search(r"\b(PAPER|DESIGN|STYLE|PEERS)\.md", TEXT[page])


def test_the_picture_is_made_of_the_committed_numbers(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    subprocess.run([sys.executable, ROOT / "research" / "picture.py", tmp_path / "picture.svg"], check=True, timeout=300)
    drawn, committed = (tmp_path / "picture.svg").read_text(), (ROOT / "docs" / "picture.svg").read_text()
    by = f"Matplotlib v{matplotlib.__version__}"
    if by in committed:
        assert drawn == committed, "`python research/picture.py` draws docs/picture.svg anew"


def test_first_token_figures_are_those_of_the_log():
    measured = json.loads((ROOT / "research" / "first_token.json").read_text())
    log, page = TEXT["research/log.md"], TEXT["docs/measured.md"]
    for key, found in measured.items():
        if " in, batch " in key:
            low, high = found["seconds"]["ratio_middle_half"]
            assert f"{found['seconds']['ratio']}" in page
            assert f"[{low}, {high}]" in log or f"[{low:.1f}, {high:.1f}]" in log


def test_the_python_page_names_the_public_surface():
    import memory3
    from memory3 import errors

    said = TEXT["docs/python.md"].partition("## ")[0]
    assert set(re.findall(r"`(\w+)`", said)) - {"Memory3Error"} == set(memory3.__all__) - set(errors.__all__)


@pytest.mark.real
def test_the_python_of_the_readme_and_of_the_python_page_runs(tmp_path):
    """Word for word, one after another in one process, in a folder that has some documents."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "words.md").write_text(
        "A reference is a piece of a document of at most 128 tokens. It is the unit of memory."
    )
    program = "\n".join([*fenced(README, "python"), *fenced(TEXT["docs/python.md"], "python")])
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert "128" in answers[0]
    assert answers[-1] == "1"


#: What each worked example needs, by the heading of its section.
EXAMPLE_NAMES = ("A selector", "A codec", "A reader", "A kernel")


def sections(text):
    return {part.partition("\n")[0]: part for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]}


def example(name):
    """Files of a worked example by path, and the program that tries it."""
    *files, program = fenced(sections(TEXT["CONTRIBUTING.md"])[name], "python")
    named = {block.partition("\n")[0].removeprefix("# src/"): block.partition("\n")[2] for block in files}
    return named, program


#: Where the examples lie while they are checked, nothing tells ruff that.
FIRST_PARTY = 'lint.isort.known-first-party = ["memory3"]'


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """What each program prints, with the files of all examples put into a copy of the package."""
    folder = tmp_path_factory.mktemp("contributing")
    shutil.copytree(
        ROOT / "src" / "memory3", folder / "memory3", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
    )
    programs = []
    for name in EXAMPLE_NAMES:
        files, program = example(name)
        for path, content in files.items():
            assert not (folder / path).exists(), f"{path} exists: choose another example"
            (folder / path).write_text(content)
        programs.append(f"print('== {name}')\n{program}")
    paths = os.pathsep.join([str(folder), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(part.split("\n", 1) for part in done.stdout.split("== ")[1:])


@pytest.mark.parametrize("name", EXAMPLE_NAMES)
def test_a_worked_example_is_short(name):
    files, program = example(name)
    for path, content in files.items():
        lines = [line for line in content.splitlines() if line]
        assert len(lines) <= 30, f"{path} has {len(lines)} lines"
    assert len(program.splitlines()) <= 20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A selector", "20"),
        ("A codec", "185940\n[tensor([[  1.0000,  -2.0000,   0.5000, 448.0000]])]"),
        ("A reader", "[('bridge.ipynb', '# Bridge\\nBuilt in 1874.\\n\\n1 + 1', {'cells': 2})]"),
        ("A kernel", "True"),
    ],
)
def test_a_worked_example_works(tried, name, expected):
    assert tried[name].startswith(expected)


def test_worked_examples_keep_the_rules_of_the_house(tmp_path):
    for name in EXAMPLE_NAMES:
        for path, content in example(name)[0].items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", "--config", FIRST_PARTY, tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
