"""What a step of training costs under each strategy, measured side by side, for notebook 12."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle, islice

import numpy as np
import torch
from accelerate import Accelerator

from eeutils.data.samples import Batch, LengthBuckets, Samples
from eeutils.exiting.intervals import Interval
from eeutils.models.timing import race, ratio
from eeutils.papers import berxit, fastbert, l2w, pabee
from eeutils.papers.controls.strategies import ALTERNATING, DEPTH, DISTILLED, LEARNED
from eeutils.training.loop import best_device, on_cpu
from eeutils.training.method import Method
from eeutils.training.runs import classes_of
from eeutils.training.settings import Setting


def step_costs(setting: Setting, samples: Samples, batches: int, rounds: int, progress: str) -> dict[str, Interval]:
    """How many times longer a step takes than one of PABEE's, all else equal: the same batches, taking turns, in one
    process. The median over rounds, and the smallest and the largest as interval. Of few samples the batches are
    smaller."""
    batch_size = min(setting.batch_size, max(2, len(samples) // batches))
    sampler = LengthBuckets(samples.lengths, batch_size, seed=0)
    sampler.start(0)
    chosen = [samples.batch(rows).to(best_device()) for rows in islice(cycle(sampler), batches)]
    methods = {
        DEPTH: (pabee.METHOD, {"poolers": "own"}),
        ALTERNATING: (berxit.METHOD, {"lte": False}),
        DISTILLED: (fastbert.METHOD, {"students": "pooler"}),
        LEARNED: (l2w.METHOD, {}),
    }
    steps = {name: _stepper(method, setting, options) for name, (method, options) in methods.items()}
    tracks = {name: [partial(step, batch) for batch in chosen] for name, step in steps.items()}
    seconds = race(tracks, rounds=rounds, device=best_device(), progress=progress)
    ratios = {name: ratio(seconds, name, DEPTH) for name in methods if name != DEPTH}
    return {name: Interval(float(np.median(each)), each.min(), each.max()) for name, each in ratios.items()}


def _stepper(method: Method, setting: Setting, options: Mapping[str, object]) -> Callable[[Batch], None]:
    """One step of a method's last phase, as the training loop takes it."""
    chosen = method.with_options(**options)
    model, phase = method.build(setting, classes_of(setting), chosen).to(best_device()), method.phases(chosen)[-1]
    model.requires_grad_(False).eval()
    for module in phase.trains(model):
        module.requires_grad_(True).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    accelerator = Accelerator(cpu=on_cpu())
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(trained, lr=setting.learning_rate, fused=True))

    def step(batch: Batch) -> None:
        with accelerator.autocast():
            answers = wrapped(*batch.inputs)
            loss = phase.objective(model, answers._replace(logits=answers.logits.float()), batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, setting.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()

    return step
