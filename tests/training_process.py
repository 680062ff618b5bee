"""One of the processes that `test_training_processes` trains with.

Arguments are the folder of settings.json, then its place.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from memory3.training.run import train
from memory3.training.settings import Settings


def main(folder: Path) -> None:
    """A run without interruption, and one that goes on from its first checkpoint."""
    torch.set_num_threads(1)
    settings = Settings.read(folder / "settings.json")
    result = train(settings, folder / "straight")
    if result.main:
        shutil.copytree(folder / "straight", folder / "resumed")
        for name in ("checkpoint-2", "model"):
            shutil.rmtree(folder / "resumed" / name)
    torch.distributed.barrier()
    train(settings, folder / "resumed", resume=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
