"""From the sources a caller names to the files behind them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from memory3.errors import InputError, ReadError
from memory3.text.readers.encoding import clean
from memory3.text.readers.source import ReadOptions, SourceFile

__all__ = ["FileSource", "FolderSource", "GlobSource", "Source", "locate"]

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
        for path in _walk(self.path, options):
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
        """Regular files that match, in order of their paths. Hidden and linked folders are passed over."""
        parts = PurePath(self.pattern).parts
        first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        folder = Path(*parts[:first])
        wanted = [*parts[first:], "*"] if parts[-1] == "**" else parts[first:]
        try:
            paths = sorted(path for path in folder.glob("/".join(wanted)) if path.is_file())
        except ValueError as error:
            raise InputError(f"the pattern {self.pattern!r} is not understood: {error}") from None
        found = False
        for path in paths:
            name = path.relative_to(folder)
            if not any(_is_passed_over(part) for part in name.parts):
                found = True
                yield SourceFile(path, _file_id(name), options)
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
            return FolderSource(path)
        if path.is_file():
            return FileSource(path)
        if glob.has_magic(str(source)):
            return GlobSource(str(source))
        if path.exists():
            raise ReadError(path, "is no regular file: pipe its content in and give '-'")
    except ReadError:
        raise
    except OSError as error:
        raise ReadError(path, f"cannot be reached: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{str(source)!r} cannot be a path: {error}") from None
    reason = "is a link to something that is not there" if path.is_symlink() else "does not exist"
    raise InputError(f"{source} {reason}: check the path (now in {Path.cwd()})")


def _walk(folder: Path, options: ReadOptions) -> Iterator[Path]:
    def unlisted(error: OSError) -> None:
        options.report(str(error.filename), f"cannot be listed: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=unlisted):
        folders[:] = sorted(name for name in folders if not _is_passed_over(name))
        for name in sorted(name for name in names if not _is_passed_over(name)):
            path = Path(parent, name)
            if path.is_file():
                yield path
            else:
                options.report(str(path), "is no regular file" if path.exists() else "is a broken link")
        for name in folders:
            path = Path(parent, name)
            if path.is_symlink():
                options.report(str(path), "is a link to a folder, which is not followed: name the folder as a source")


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name in _TOOL_FOLDERS


def _file_id(path: PurePath) -> str:
    return clean(path.as_posix())
