"""The command ``memory3``. One file per command or group of commands; nothing below knows that there is a command line.

Results go to stdout: text for people, or one JSON document with ``--json``. Progress and messages go to stderr. Exit
status: 0, 1 for errors of memory3 and for a check that found something, 2 for wrong usage, 130 when interrupted.
"""

from memory3.cli.app import main

__all__ = ["main"]
