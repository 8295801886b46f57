# The batch engine of `make reproduce`: every notebook, for every task and seed, then one table of all results.
#
#   make reproduce PROFILE=full TASKS="movie amazon" SEEDS="0 1 2" JOBS=2
#   snakemake --cores all --config profile=full tasks="movie amazon"      (the same without make)
#
# Only what changed runs again: a notebook, the package, the pinned sources, or a setting. An interrupted batch goes
# on where it stopped. workflow/slurm/config.yaml runs the same jobs on a cluster.

import os
import sys
from pathlib import Path

from eeutils.errors import InputError
from workflow.execute import from_folder, hold, to_folder, validate
from workflow.waiting import watch

# Jobs run `python -m workflow.execute` in whatever folder --directory names, and that module is not installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [workflow.basedir, os.environ.get("PYTHONPATH")]))

# Adding a notebook is one line. Listed behind it: notebooks whose results it reads, so that it runs after them and
# again when they did. Trained models need no line: whoever needs one first trains it, the others wait and load it.
NOTEBOOKS = {
    "00_early_exit_from_scratch": [],
    "01_deebert_pabee": [],
    "02_badge": [],
    "03_cascadebert": [],
    "04_de3bert": [],
    "05_consistentee": [],
    "06_hashee": [],
    "07_ensemble_exits": [],
    "08_scoreboard": [],
    "09_generation": [],
    "10_generation_methods": [],
    "11_smartbert": [],
    "12_training_strategies": [],
    "13_learned_rules": [],
}

# They start first, in this order: begun last, a long one would run on alone when all others are done. 10 waits until 09
# has trained the decoder and written most of what 10 compares with.
LONG = [
    "09_generation",
    "11_smartbert",
    "12_training_strategies",
    "06_hashee",
    "03_cascadebert",
    "13_learned_rules",
    "10_generation_methods",
]

try:
    BATCH = validate(config)
    # `workflow.dryrun` is not known yet while this file is read.
    if workflow.is_main_process and not {"-n", "--dry-run"} & set(sys.argv):
        LOCK = hold(Path("reproduced/.lock"))
except InputError as error:
    sys.exit(f"error: {error}")

# What the scoreboard reads.
TABLES = sorted(str(path) for kind in ("study-*", "[0-9][0-9]-claims") for path in Path("data/results").glob(f"{kind}.csv"))
FILES = {"eeutils": "**/*.py", "workflow": "execute.py", "data": "*.toml"}
SOURCES = sorted(str(path) for folder, names in FILES.items() for path in Path(folder).glob(names))

# The small models of these papers gain little from more threads: on two cores two trainings with one thread each get
# further than one training with two. More than two notebooks at a time take much memory, so only many cores do that.
CORES = workflow.resource_settings.cores
THREADS = max(1, CORES // (BATCH.jobs or max(2, CORES // 4))) if CORES else 4  # None on a cluster
# On a cluster the profile decides (cpus_per_task), and a job knows what it was given.
OMP = "{threads}" if CORES else "${{SLURM_CPUS_PER_TASK:-{threads}}}"


wildcard_constraints:
    task="[^/]+",
    seed="[0-9]+",
    method="[a-z0-9_]+",


onstart:
    if not CORES:
        watch()
    if "study" in workflow.dag_settings.targets:
        from eeutils.study.plan import announce

        logger.warning(announce(BATCH.profile, BATCH.backbone, BATCH.tasks, BATCH.seeds))


rule all:
    default_target: True
    input:
        f"reproduced/{BATCH.profile}/results.csv",


rule collect:
    message: "collecting the results into {output[0]}"
    input:
        expand(f"{BATCH.folder}/{{notebook}}.ipynb", task=map(to_folder, BATCH.tasks), seed=BATCH.seeds, notebook=NOTEBOOKS),
    output:
        f"reproduced/{BATCH.profile}/results.csv",
        times=f"reproduced/{BATCH.profile}/times.csv",
    localrule: True
    params:
        python=sys.executable,
        folder=f"reproduced/{BATCH.profile}",
    shell:
        "{params.python:q} -m workflow.execute collect {params.folder:q}"


for NUMBER, (NOTEBOOK, EARLIER) in enumerate(NOTEBOOKS.items()):

    rule:
        name: f"notebook_{NOTEBOOK}"
        message: f"{NOTEBOOK}: task {{wildcards.task}}, seed {{wildcards.seed}}, {{threads}} thread(s)"
        input:
            notebook=f"notebooks/{NOTEBOOK}.ipynb",
            sources=SOURCES,
            tables=TABLES if NOTEBOOK == "08_scoreboard" else [],
            earlier=expand(f"{BATCH.folder}/{{earlier}}.ipynb", earlier=EARLIER, allow_missing=True),
        output:
            notebook=f"{BATCH.folder}/{NOTEBOOK}.ipynb",
            saved=directory(f"{BATCH.folder}/{NOTEBOOK}"),
        threads: THREADS
        priority: 2 * len(NOTEBOOKS) - LONG.index(NOTEBOOK) if NOTEBOOK in LONG else len(NOTEBOOKS) - NUMBER
        params:
            python=sys.executable,
            profile=BATCH.profile,
            task=lambda wildcards: from_folder(wildcards.task),
            backbone=BATCH.backbone,
        shell:
            f"mkdir -p {{output.saved:q}} && OMP_NUM_THREADS={OMP} MPLBACKEND=Agg "
            "{params.python:q} -m workflow.execute run --unchecked {input.notebook:q} {output.notebook:q} "
            "-p profile {params.profile:q} -p task {params.task:q} -p backbone {params.backbone:q} "
            "-p seed {wildcards.seed} -p save_to {output.saved:q}"


# `make study`, for notebook 08.
include: "workflow/study.smk"
