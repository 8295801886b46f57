# The study behind notebook 08: `make study PROFILE=quick TASKS="movie mrpc" SEEDS="0 1 2"`.
#
# Runs first, one job per task, seed and method; then the clocks, with nothing beside them; then the tables. Smoke results
# mean nothing, so they stay out of the tables that are committed.

STUDY = f"reproduced/{BATCH.profile}/study"
RESULTS = os.environ.get("EEUTILS_RESULTS") or (STUDY if BATCH.profile == "smoke" else "data/results")
FIRST = ("finetuned", "pabee")  # the others start from them


def trained(tasks, seeds):
    from eeutils.study.entries import method_names

    return [
        file
        for task in tasks
        for file in expand(
            f"{BATCH.folder}/study/{{method}}.trained",
            task=to_folder(task),
            seed=seeds,
            method=method_names(task, BATCH.backbone),
        )
    ]


def started_from(wildcards):
    first = () if wildcards.method in FIRST else FIRST
    return expand(f"{BATCH.folder}/study/{{first}}.trained", first=first, allow_missing=True)


def searched(tasks, seeds):
    """The trainings of the search, on the first task and seed."""
    if BATCH.profile == "smoke":
        return []
    from eeutils.study.entries import method_names

    return expand(
        f"{BATCH.folder}/study/{{method}}.searched",
        task=to_folder(tasks[0]),
        seed=seeds[:1],
        method=method_names(tasks[0], BATCH.backbone),
    )


rule study:
    input:
        f"{STUDY}/done",


rule study_tables:
    message: "study: reading the runs into {params.results}"
    input:
        lambda _: trained(BATCH.tasks, BATCH.seeds) + searched(BATCH.tasks, BATCH.seeds),
        sources=SOURCES,
        times=expand(f"{STUDY}/{{task}}.csv", task=map(to_folder, BATCH.tasks)),
    output:
        touch(f"{STUDY}/done"),
    params:
        python=sys.executable,
        results=RESULTS,
        batch=BATCH,
    shell:
        "{params.python:q} -m eeutils.study tables {params.batch.profile:q} {params.batch.backbone:q} {params.results:q} "
        "--tasks {params.batch.tasks:q} --seeds {params.batch.seeds} --times {input.times:q}"


rule study_times:
    message: "study: measuring time, task {wildcards.task}"
    input:
        lambda wildcards: trained([from_folder(wildcards.task)], BATCH.seeds[:1]),
    output:
        f"{STUDY}/{{task}}.csv",
    threads: CORES or THREADS  # nothing may run beside a clock
    params:
        python=sys.executable,
        batch=BATCH,
        task=lambda wildcards: from_folder(wildcards.task),
    shell:
        f"OMP_NUM_THREADS={OMP} "
        "{params.python:q} -m eeutils.study time {params.batch.profile:q} {params.task:q} "
        "{params.batch.backbone:q} {params.batch.seeds[0]} {output:q}"


rule study_train:
    message: "study: {wildcards.method}, task {wildcards.task}, seed {wildcards.seed}, {threads} thread(s)"
    input:
        started_from,
        sources=SOURCES,
    output:
        touch(f"{BATCH.folder}/study/{{method}}.trained"),
    threads: THREADS
    params:
        python=sys.executable,
        batch=BATCH,
        task=lambda wildcards: from_folder(wildcards.task),
        command="train",
    shell:
        f"OMP_NUM_THREADS={OMP} "
        "{params.python:q} -m eeutils.study {params.command} {params.batch.profile:q} "
        "{params.task:q} {params.batch.backbone:q} {wildcards.seed} {wildcards.method:q}"


use rule study_train as study_search with:
    message: "study: the search of {wildcards.method}, task {wildcards.task}, {threads} thread(s)"
    input:
        f"{BATCH.folder}/study/{{method}}.trained",
        sources=SOURCES,
    output:
        touch(f"{BATCH.folder}/study/{{method}}.searched"),
    params:
        python=sys.executable,
        batch=BATCH,
        task=lambda wildcards: from_folder(wildcards.task),
        command="search",
