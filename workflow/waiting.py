"""Why jobs on a Slurm cluster do not start: told while they wait, since a batch that asks for what no node has would
wait for ever without a word.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

REASONS = {
    "PartitionConfig": "the partition has no node with so many processors",
    "PartitionNodeLimit": "the partition has no node with so much",
    "PartitionTimeLimit": "the partition does not let a job run that long",
    "Resources": "every node that would do is busy",
    "Priority": "other jobs come first",
    "BadConstraints": "no node has what is asked for, such as a GPU",
    "ReqNodeNotAvail": "the nodes that would do are down or reserved",
}
"""Slurm's word for why a job is pending -> what it means."""

HOPELESS = {"PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints"}
"""Reasons that no waiting mends."""


class Job(NamedTuple):
    """One line of the queue: its state, why it waits, how many processors and how much memory it asks for, its rule."""

    state: str
    reason: str
    processors: str
    memory: str
    rule: str


def queue() -> list[Job]:
    """This user's jobs of Snakemake, waiting or running; none where Slurm does not answer."""
    command = ["squeue", "--me", "--noheader", "--format=%T|%r|%C|%m|%k"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    jobs = [Job(*line.split("|", 4)) for line in listed.splitlines() if line.count("|") >= len(Job._fields) - 1]
    return [job for job in jobs if job.rule.startswith("rule_")]


def explain(jobs: Iterable[Job]) -> str:
    """A sentence for each reason why jobs wait while none runs; nothing where one runs or none waits."""
    waiting: dict[str, list[Job]] = {}
    for job in jobs:
        if job.state == "RUNNING":
            return ""
        if job.state == "PENDING":
            waiting.setdefault(job.reason, []).append(job)
    lines = []
    for reason, alike in waiting.items():
        one = alike[0]
        meaning = REASONS.get(reason, "see `squeue --me`")
        mend = (
            "; it will never start: lower cpus_per_task, mem_mb, runtime or gpu in the profile's config.yaml, or name "
            "another slurm_partition, then stop this batch and run it again"
            if reason in HOPELESS
            else ""
        )
        lines.append(
            f"{len(alike)} job(s) wait and none runs, for Slurm says {reason}: {meaning}. The first is "
            f"{one.rule.removeprefix('rule_')}, which asks for {one.processors} processor(s) and {one.memory} of "
            f"memory{mend}."
        )
    return "\n".join(lines)


def watch(every: float = 120.0, read: Callable[[], list[Job]] = queue) -> threading.Event:
    """Tell on stderr why nothing starts, each time that the answer is another one, until the event is set."""
    stop = threading.Event()

    def run() -> None:
        told = ""
        while not stop.wait(every):
            if (now := explain(read())) and now != told:
                print(now, file=sys.stderr, flush=True)
            told = now

    threading.Thread(target=run, daemon=True).start()
    return stop
