"""``memory3 plan``: what knowledge costs. The command is in `plan`, what it shows in the files beside it."""

from memory3.cli.plan.plan import plan

__all__ = ["plan"]
