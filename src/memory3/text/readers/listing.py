"""From the sources a caller names to the files behind them."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from memory3.errors import InputError, ReadError
from memory3.text.readers import prepared
from memory3.text.readers.encoding import clean
from memory3.text.readers.source import ReadOptions, SourceFile

__all__ = ["FileSource", "FolderSource", "GlobSource", "Source", "is_bank", "locate"]

#: Folders of tools, not of their users, that are not hidden by their name.
_TOOL_FOLDERS = frozenset(("CVS", "_darcs", "__pycache__", "node_modules"))


@dataclass(frozen=True)
class FileSource:
    """A file named by the caller. Its id is the path as given, with forward slashes."""

    path: Path
    strict = True

    def files(self, options: ReadOptions) -> Iterator[SourceFile]:
        """The file."""
        yield SourceFile(self.path, _file_id(self.path), options)


@dataclass(frozen=True)
class FolderSource:
    """A folder with all below it. Ids are relative to it."""

    path: Path
    strict = False

    def files(self, options: ReadOptions) -> Iterator[SourceFile]:
        """Regular files in order of their names, those of a folder before those of its folders."""
        try:
            os.scandir(self.path).close()
        except OSError as error:
            raise ReadError(self.path, f"cannot be listed: {error.strerror}") from None
        found = False
        for path in _walk(self.path, self.path, options):
            found = True
            yield SourceFile(path, _file_id(path.relative_to(self.path)), options)
        if not found:
            raise InputError(f"the folder {self.path} holds no files (hidden ones are passed over)")


@dataclass(frozen=True)
class GlobSource:
    """A pattern such as ``docs/**/*.md``. Ids are relative to the last folder before the first wildcard."""

    pattern: str
    strict = False

    def files(self, options: ReadOptions) -> Iterator[SourceFile]:
        """Regular files that match, in order of their paths. Hidden and linked folders, and banks, are passed over."""
        parts = PurePath(self.pattern).parts
        first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        folder = Path(*parts[:first])
        wanted = [*parts[first:], "*"] if parts[-1] == "**" else parts[first:]
        _refuse_bank(folder)
        try:
            matches = set(folder.glob("/".join(wanted)))
        except ValueError as error:
            raise InputError(f"the pattern {self.pattern!r} is not understood: {error}") from None
        # Only a walk tells which folders cannot be listed, and which are banks.
        depth = None if "**" in wanted else len(wanted)
        found = False
        for path in sorted(_walk(folder, folder, options, depth, matches)):
            found = True
            yield SourceFile(path, _file_id(path.relative_to(folder)), options)
        if not found:
            raise InputError(f"no file matches {self.pattern!r} (hidden ones are passed over)")


Source = FileSource | FolderSource | GlobSource


def locate(source: str | Path) -> Source:
    """What a source names. A name that exists is never taken for a pattern."""
    path = Path(source)
    if not str(source).strip():
        raise InputError("an empty path was given: use '.' for the folder you are in")
    try:
        if path.is_dir():
            _refuse_bank(path)
            return FolderSource(path)
        if path.is_file():
            _refuse_bank(path)
            return FileSource(path)
        if glob.has_magic(str(source)):
            return GlobSource(str(source))
        if path.exists():
            raise ReadError(path, "is no regular file: pipe its content in and give '-'")
    except InputError:
        raise
    except OSError as error:
        raise ReadError(path, f"cannot be reached: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{str(source)!r} cannot be a path: {error}") from None
    reason = "is a link to something that is not there" if path.is_symlink() else "does not exist"
    raise InputError(f"{source} {reason}: check the path (now in {Path.cwd()})")


def _walk(
    folder: Path, root: Path, options: ReadOptions, depth: int | None = None, wanted: Collection[Path] | None = None
) -> Iterator[Path]:
    """Regular files at most ``depth`` names below ``folder``; of those ``wanted``, if it says so. What cannot be read is
    reported.

    Not `os.walk`: a folder that cannot be listed must not be taken for one that is empty.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        options.lost(folder, _file_id(folder.relative_to(root)), f"cannot be listed: {error.strerror}")
        return
    parts_only = prepared.is_prepared(folder)
    folders = []
    for entry in found:
        path = folder / entry.name
        if _is_passed_over(entry.name) or (parts_only and not prepared.is_part(path)):
            continue
        try:
            is_folder, is_file = path.is_dir(), path.is_file()
        except OSError as error:
            options.lost(path, _file_id(path.relative_to(root)), f"cannot be reached: {error.strerror}")
            continue
        if is_folder:
            folders.append(path)
        elif wanted is not None and path not in wanted:
            continue
        elif is_file:
            yield path
        else:
            reason = "is a broken link" if path.is_symlink() else "is no regular file"
            options.lost(path, _file_id(path.relative_to(root)), reason)
    for path in folders:
        if path.is_symlink():
            if wanted is None:
                options.report(str(path), "is a link to a folder, which is not followed: name the folder as a source")
        elif is_bank(path):
            options.report(str(path), "is a memory3 bank and passed over")
        elif depth is None or depth > 1:
            yield from _walk(path, root, options, depth and depth - 1, wanted)


def is_bank(folder: Path) -> bool:
    """Whether a folder is a bank of memory3, whose files are no documents."""
    try:
        return (folder / "CURRENT").is_file() and any(folder.glob("references-*.lance"))
    except OSError:
        return False


def _refuse_bank(path: Path) -> None:
    around = next((folder for folder in (path.absolute(), *path.absolute().parents) if is_bank(folder)), None)
    if around is not None:
        raise InputError(
            f"{path} is (in) the memory3 bank {around}, whose files are no documents: name what it was written from"
        )


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name in _TOOL_FOLDERS


def _file_id(path: PurePath) -> str:
    return clean(path.as_posix())
