"""What a study will cost before it starts, and what is left of one that was interrupted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from eeutils.papers import pabee
from eeutils.study.entries import Wanted, budget_for, entries_for
from eeutils.training import loop
from eeutils.training.runs import classes_of, find, samples_of
from eeutils.training.settings import Setting

MEASURED = 3
"""Steps that are timed, after one that is not."""


@dataclass(frozen=True)
class Plan:
    """The trainings of a study on some tasks and seeds.

    Attributes:
        runs: how many there are, those that others start from included.
        there: how many of them have been trained.
        steps: steps of the optimizer that the others take, task by task; those of judges that see half of the samples
            (CascadeBERT's) are not counted.
    """

    runs: int
    there: int
    steps: dict[str, int]


def plan(profile: str, backbone: str, tasks: Sequence[str], seeds: Sequence[int]) -> Plan:
    """What a study has to train. Raises InputError as a setting does."""
    runs, there, steps = 0, 0, dict.fromkeys(tasks, 0)
    for task in tasks:
        for seed in seeds:
            for wanted, setting in _trainings(profile, Setting.from_profile(profile, task, backbone, seed)):
                runs += 1
                if find(wanted.method, setting, **wanted.options):
                    there += 1
                else:
                    steps[task] += _steps(wanted, setting)
    return Plan(runs, there, steps)


def _trainings(profile: str, setting: Setting) -> list[tuple[Wanted, Setting]]:
    """Every run of one task and seed once, with the runs that they start from."""
    unique: dict[Any, tuple[Wanted, Setting]] = {}
    for entry in entries_for(setting.task, setting.backbone):
        for wanted in entry.wanted(budget_for(profile, setting.backbone)):
            while True:
                own = wanted.setting(setting)
                # Options at their defaults or not named at all are the same run.
                unique.setdefault(
                    (wanted.method.name, wanted.method.with_options(**wanted.options), own), (wanted, own)
                )
                if wanted.method.starts_from is None:
                    break
                wanted = Wanted(wanted.method.starts_from, times=wanted.times)
    return list(unique.values())


def _steps(wanted: Wanted, setting: Setting) -> int:
    samples = len(samples_of(setting, "train"))
    phases = wanted.method.phases(wanted.method.with_options(**wanted.options))
    return -(-samples // setting.batch_size) * sum(phase.epochs or setting.epochs for phase in phases)


def seconds_a_step(setting: Setting) -> float:
    """What one step of training an encoder with an exit on every layer takes on this machine, measured; methods that
    freeze the encoder take less."""
    device, half = loop.best_device(), loop.precision() == "bf16"
    model = pabee.build(setting, classes_of(setting), pabee.METHOD.options).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, fused=True)
    train, seconds = samples_of(setting, "train"), []
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    for step in range(MEASURED + 1):
        places = [order[(step * setting.batch_size + k) % len(order)] for k in range(setting.batch_size)]
        batch, started = train.batch(places).to(device), time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            answers = model(*batch.inputs)
            loss = pabee.weighted_loss(model, answers._replace(logits=answers.logits.float()), batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), setting.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])


def announce(profile: str, backbone: str, tasks: Sequence[str], seeds: Sequence[int]) -> str:
    """The plan in words, with the hours that it takes at the speed of this machine."""
    planned = plan(profile, backbone, tasks, seeds)
    about = (
        f"The study on {backbone}, profile {profile}, {len(tasks)} task(s) and {len(seeds)} seed(s), has "
        f"{planned.runs} runs; {planned.there} of them are there"
    )
    if planned.there == planned.runs:
        return f"{about}: only clocks and tables are left."
    hours = 0.0
    for task, steps in planned.steps.items():
        if steps:
            hours += steps * seconds_a_step(Setting.from_profile(profile, task, backbone, seeds[0])) / 3600
    kind = loop.best_device().type
    machine = f"{torch.get_num_threads()} thread(s) of this CPU" if kind == "cpu" else f"this {kind} device"
    return (
        f"{about}. The others take {sum(planned.steps.values()):,} steps: at most about {hours:.1f} hours of {machine} "
        "at the speed measured now. It can be stopped at any time and goes on where it stopped."
    )
