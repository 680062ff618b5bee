"""What becomes of errors at the command's edge: one sentence that names the value and the remedy, and an exit status.

Errors of memory3 say it themselves, and name settings as options of the command. Those of the operating system are told
apart by what a person can do. What is left is a bug of ours or of a library, and is said to be one. ``--debug`` shows
the traceback of any of them.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from memory3.cli.output import message
from memory3.errors import Memory3Error, NeedsCheckout

__all__ = ["Commands", "sentence"]

_ON = ("1", "true", "yes", "on")

#: What a person can do about errors of the operating system.
_REMEDIES = {
    errno.ENOSPC: "no space is left on the device: make room",
    errno.EDQUOT: "your disk quota is used up: make room",
    errno.EACCES: "permission is denied: change the rights, or choose another place",
    errno.EPERM: "the operation is not permitted: change the rights, or choose another place",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.EMFILE: "too many files are open: raise the limit with `ulimit -n 4096`",
    errno.ENFILE: "too many files are open on this machine: close other programs",
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "this is a folder, and a file is needed",
    errno.ENOTDIR: "this is a file, and a folder is needed",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the device reports an error: check the disk",
    errno.ENOMEM: "out of memory: use a smaller model, or a lower --batch-size",
}


class Commands(TyperGroup):
    """The commands. An error is a sentence and exit status 1, an interruption 130."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """``--debug`` may stand anywhere in front of a ``--``."""
        end = args.index("--") if "--" in args else len(args)
        ctx.obj = {"debug": "--debug" in args[:end] or os.environ.get("MEMORY3_DEBUG", "").lower() in _ON}
        return super().parse_args(ctx, [a for n, a in enumerate(args) if a != "--debug" or n > end])

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            message("interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise  # typer ends quietly
        except Exception as error:  # the last place where an error can be told; nothing is swallowed, it ends the command
            if type(error).__module__.split(".")[0] in ("click", "typer"):
                raise  # wrong usage, or an end that was asked for: typer's own affair
            if ctx.obj["debug"]:
                traceback.print_exc()
            message(sentence(error, _options(self, ctx)), kind="error", style="bold red")
            raise typer.Exit(2 if isinstance(error, NeedsCheckout) else 1) from None


def sentence(error: Exception, options: dict[str, str] | None = None) -> str:
    """What to tell of an error. ``options``: of the command, by parameter."""
    if isinstance(error, Memory3Error):
        return error.worded(lambda name: (options or {}).get(name) or f"--{name.replace('_', '-')}")
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return _REMEDIES[errno.ENOMEM]
    if isinstance(error, OSError) and error.errno is not None:
        said = _REMEDIES.get(error.errno) or error.strerror or str(error)
        place = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{place}: {said}" if place else said
    if isinstance(error, RecursionError):
        return "something is nested too deeply: a document, a configuration or a manifest. Run again with --debug to see which"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"memory3 failed unexpectedly: {type(error).__name__}: {first}. Run again with --debug and report it"


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _options(group: Any, ctx: Any) -> dict[str, str]:
    """How the command that runs calls its parameters."""
    command, names = group, list(ctx._protected_args if hasattr(ctx, "_protected_args") else [])
    found: dict[str, str] = {}
    for name in [*names, *ctx.args]:
        command = getattr(command, "commands", {}).get(name)
        if command is None:
            break
        found |= {p.name: p.opts[0] for p in command.params if p.name and p.opts and p.opts[0].startswith("--")}
    return found
