"""A run that is told to stop finishes its step, writes a checkpoint and ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback

__all__ = ["StopOnSignal"]


class StopOnSignal(TrainerCallback):
    """For SIGINT (Ctrl-C) and SIGTERM; a second one ends the process as ever.

    Attributes:
        asked: whether a signal came.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen for signals, in the main thread.

        Args:
            args: of the run.
            state: of the Trainer.
            control: tells the Trainer what to do next.
        """
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, if a signal asked for it.

        Args:
            args: of the run.
            state: of the Trainer.
            control: tells the Trainer what to do next.
        """
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give signals back to whom they were.

        Args:
            args: of the run.
            state: of the Trainer.
            control: tells the Trainer what to do next.
        """
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
