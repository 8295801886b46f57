"""What one experiment is run with: profiles, and the parameters that a notebook accepts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from eeutils.data.pairs import PAIR_TASKS
from eeutils.data.specs import spec_of
from eeutils.errors import InputError, unknown
from eeutils.models.backbone import OFFLINE_BACKBONES, check_backbone, default_pool, width_of
from eeutils.models.decoder import OFFLINE_DECODERS

PROFILES: dict[str, dict[str, Any]] = {
    # Seconds a notebook: shows that everything runs. Its numbers mean nothing.
    "smoke": {"train_size": 96, "test_size": 64, "epochs": 1, "max_length": 48},
    # Minutes on two cores: the default. The shortest training after which every exit has learned what its own vector
    # can tell; of as many steps, two epochs of more samples taught more than three of fewer.
    "quick": {"train_size": 3000, "test_size": None, "epochs": 2, "max_length": 64},
    # What the scoreboard's study takes: hours on two cores.
    "study": {"train_size": 4000, "test_size": None, "epochs": 2, "max_length": 64},
    # The whole data.
    "full": {"train_size": None, "test_size": None, "epochs": 3, "max_length": 128},
}

_PAIRS = {"epochs": 4, "max_length": 96}
CHANGES: dict[tuple[str, str], dict[str, Any]] = {
    # Grammar and paraphrase are far from what a small sentence encoder was trained for: all samples, and four epochs.
    ("quick", "cola"): {"train_size": 4000, "epochs": 4},
    ("study", "cola"): {"train_size": None, "epochs": 4},
    **{(profile, task): _PAIRS for profile in ("quick", "study") for task in ("mrpc", "rte", "stsb")},
}
"""(profile, task) -> what is different there."""

BASE_WIDTH = 768
"""Encoders from that width on are of base size, as BERT-base is."""
BASE_SIZE: dict[str, dict[str, Any]] = {"quick": {"epochs": 2}, "study": {"epochs": 2}}
"""Profile -> what is different with an encoder of base size, whatever the task. Two passes over MRPC give mpnet-base
more than BERT-base has in published tables (on dev .842 for .780 to .840 after one), and every step takes ten times as
long as a small encoder's."""

PARAMETERS = ("profile", "task", "backbone", "seed", "save_to")
"""The parameters of every notebook, as papermill sets them."""


@dataclass(frozen=True)
class Setting:
    """Everything but the method that decides what a run gives.

    Attributes:
        task, backbone, seed: what to learn, with what, and the seed of heads, batches and dropout.
        train_size, test_size: samples to use of train, and of test; None for all.
        epochs: passes over train in each phase, unless a phase says otherwise.
        batch_size: samples a step, over all processes together.
        learning_rate: peak, reached after `warmup` (share of the steps), then linear to 0.
        head_rate: times the learning rate, for what is not the encoder's and begins at random: poolers, classifiers,
            prototypes, bypasses, policies.
        max_length: word pieces; longer texts are cut.
        pool: where exits read a sentence, "cls" or "mean".
    """

    task: str = "movie"
    backbone: str = "minilm-l6"
    seed: int = 0
    train_size: int | None = None
    test_size: int | None = None
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 2e-5
    head_rate: float = 10.0
    max_length: int = 128
    pool: str = "cls"
    warmup: float = 0.1
    weight_decay: float = 0.01
    gradient_clip: float = 1.0

    @classmethod
    def from_profile(cls, profile: str, task: str, backbone: str, seed: int, **changes: Any) -> Setting:
        """A profile's setting for a task and a backbone; `changes` override single fields.

        Raises:
            InputError: an unknown profile, task, backbone or field; the sentence lists the valid ones.
        """
        check(profile, task, backbone)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed must be a whole number from 0; got {seed!r}")
        values = PROFILES[profile] | CHANGES.get((profile, task), {})
        if width_of(backbone) >= BASE_WIDTH:
            values |= BASE_SIZE.get(profile, {})
        values |= {"pool": default_pool(backbone), "learning_rate": _rate_of(backbone)}
        known = asdict(cls())
        for name in changes:
            if name not in known:
                raise unknown("setting", name, known)
        return replace(cls(task=task, backbone=backbone, seed=seed, **values), **changes)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more; got {getattr(self, name)}")
        for name in ("learning_rate", "head_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0 and finite; got {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"warmup is a share of the steps, 0 to 1; got {self.warmup}")

    def on(self, backbone: str) -> Setting:
        """The same setting with another encoder: its exits read a sentence where they should, and it learns as fast as
        an encoder of its size does."""
        if backbone == self.backbone:
            return self
        faster = _rate_of(backbone) / _rate_of(self.backbone)
        rate = faster * self.learning_rate
        return replace(self, backbone=backbone, pool=default_pool(backbone), learning_rate=rate)

    def to_dict(self) -> dict[str, Any]:
        """All fields, for a run's config.json."""
        return asdict(self)


def check(profile: str, task: str, backbone: str) -> None:
    """Fail before anything runs.

    Raises:
        InputError: an unknown profile, task or backbone; the sentence lists the valid ones.
    """
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    # Notebooks that write texts take generation tasks and decoders; whoever needs classes refuses these later.
    if not (task in PAIR_TASKS or task.endswith(".jsonl")):
        spec_of(task)
    if backbone not in OFFLINE_DECODERS:
        check_backbone(backbone)


def check_parameters(names: Iterable[str]) -> None:
    """Refuse parameters that no notebook has: papermill itself would only warn and run on.

    Raises:
        InputError: names the stranger and lists the valid parameters.
    """
    for name in names:
        if name not in PARAMETERS:
            raise unknown("notebook parameter", name, PARAMETERS)


def _rate_of(backbone: str) -> float:
    # Sentence encoders and small distilled ones move slowly: at 6e-5 mpnet-base is 6 points lower after one pass over
    # MRPC. The papers' 2e-5 to 5e-5 are for BERT-base.
    return 1e-4 if backbone in OFFLINE_BACKBONES or width_of(backbone) < BASE_WIDTH else 3e-5
