"""What notebooks that write texts need besides `notebook`: their task and decoder from the same parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from IPython.display import Markdown, display

from eeutils.data.pairs import DEFAULT_TASK, PAIR_TASKS, check_pair_task
from eeutils.data.specs import TASKS, TaskSpec
from eeutils.models.backbone import OFFLINE_BACKBONES
from eeutils.models.decoder import OFFLINE_DECODERS, TINY
from eeutils.reporting import plots
from eeutils.reporting.notebook import FINDINGS, Notebook, parameters_of
from eeutils.training.decoders import decoder_setting

DEFAULT_DECODER = "smollm2-135m"


def open_generation(namespace: dict[str, Any]) -> Notebook:
    """As `open_notebook`, for a notebook that writes: call it with `globals()` right after the parameters.

    All notebooks take the same parameters, so that a batch can run them all. Where the task is one of classification,
    `wiki-descriptions` stands in; where the backbone is an encoder, the offline decoder does, and at the smoke profile
    a random one that needs no download.

    Raises:
        InputError: an unknown parameter, profile, task or decoder; the sentence lists the valid ones.
    """
    profile, task, backbone, seed = parameters_of(namespace)
    task = DEFAULT_TASK if task in TASKS or (Path(task) / "task.toml").is_file() else task
    check_pair_task(task)
    if backbone in OFFLINE_BACKBONES:
        backbone = TINY if profile == "smoke" else DEFAULT_DECODER
    setting = decoder_setting(profile, task, backbone, seed)
    about = PAIR_TASKS.get(task, f"own task {task}")
    spec = TaskSpec(task, about.split(",")[0], (), ("text_a",), ("ROUGE-L",), "offline", about)
    plots.use_theme()
    here = Notebook(profile, setting, spec, Path(namespace["save_to"]) if namespace["save_to"] else None)
    named = f"{backbone} ({OFFLINE_DECODERS[backbone]})" if backbone in OFFLINE_DECODERS else backbone
    display(Markdown(f"{about}. Decoder: {named}. Profile {profile}, seed {seed}."))
    display(Markdown("*What came out stands here once the notebook has run.*"), display_id=FINDINGS)
    return here
