"""Checkpoints of a training run: complete or not there, and enough to go on as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from eeutils.files import atomic_write, explain_full_disk

SHARE = 0.05
"""Of a training, so much may go into checkpoints. Those of a base-size encoder have 1.3 GB: a slow disk takes as long
for one as five steps do."""


@dataclass
class Position:
    """Where a run stands: the next step to take, and what was found so far."""

    phase: int = 0
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] | None = None
    seconds: float = 0.0
    loss_sum: float = 0.0


class Checkpoints:
    """Checkpoints of one run: `step-*` folders, complete once `position.json` stands in them.

    Args:
        directory: for the folders.
        accelerator: knows what is trained.
        seconds: between two of them, or as many more as keep them to their share of the time; 0 for one at every step.
    """

    def __init__(self, directory: Path, accelerator: Accelerator, seconds: float) -> None:
        self.directory, self.accelerator, self.seconds = directory, accelerator, seconds
        self._last = time.monotonic()
        self.took = 0.0  # seconds that the newest checkpoint took to write

    @property
    def due(self) -> bool:
        """Whether the newest checkpoint is old enough."""
        return time.monotonic() - self._last >= self.wait

    @property
    def wait(self) -> float:
        """Seconds from one checkpoint to the next."""
        return max(self.seconds, self.took / SHARE) if self.seconds else 0.0

    def _complete(self) -> Iterator[Path]:
        for folder in sorted(self.directory.glob("step-*"), key=lambda path: int(path.name[5:]), reverse=True):
            if (folder / "position.json").exists():
                yield folder

    def position(self) -> Position | None:
        """Where the newest complete checkpoint stands."""
        folder = next(self._complete(), None)
        return Position(**json.loads((folder / "position.json").read_text())) if folder else None

    def restore(self, position: Position) -> None:
        """Weights, optimizer, schedule and random states, if `position` came from a checkpoint."""
        folder = next(self._complete(), None)
        if folder and (position.epoch or position.step):
            self.accelerator.load_state(str(folder))

    def save(self, position: Position) -> None:
        """A new checkpoint beside the old one; the old one goes once the new one is complete."""
        started = time.monotonic()
        known = list(self._complete())
        number = int(known[0].name[5:]) + 1 if known else 1
        folder = self.directory / f"step-{number}"
        self.accelerator.wait_for_everyone()
        with explain_full_disk(folder):
            if self.accelerator.is_main_process:
                shutil.rmtree(folder, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            try:
                self.accelerator.save_state(str(folder), safe_serialization=False)
            except BaseException:
                # Half a checkpoint is of no use, and on a full disk it would keep the disk full.
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                with atomic_write(folder / "position.json") as partial:
                    partial.write_text(json.dumps(vars(position)))
                for old in known:
                    shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        self._last = time.monotonic()
        self.took = self._last - started


def remove_checkpoints(directory: Path) -> None:
    """Delete what `fit` kept for resuming, once the result is safe."""
    shutil.rmtree(directory, ignore_errors=True)
