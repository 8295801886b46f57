"""Jobs that wait on a cluster say why."""

import stat
from pathlib import Path

import pytest

from workflow.waiting import Job, explain, queue, watch

WAITS = Job("PENDING", "PartitionConfig", "4", "16000M", "rule_notebook_01_wildcards_movie_0")


def test_a_batch_that_no_node_can_run_says_what_it_asks_for_and_what_to_do() -> None:
    told = explain([WAITS, WAITS])
    assert "2 job(s) wait and none runs" in told
    assert "notebook_01_wildcards_movie_0, which asks for 4 processor(s) and 16000M" in told
    assert "it will never start: lower cpus_per_task" in told


def test_a_busy_cluster_is_told_apart_from_a_hopeless_batch() -> None:
    told = explain([WAITS._replace(reason="Priority"), WAITS._replace(reason="Resources")])
    assert "other jobs come first" in told
    assert "busy" in told
    assert "never" not in told
    assert "see `squeue --me`" in explain([WAITS._replace(reason="QOSMaxJobsPerUserLimit")])


@pytest.mark.parametrize("jobs", [[], [WAITS, WAITS._replace(state="RUNNING")], [WAITS._replace(state="COMPLETING")]])
def test_where_something_runs_or_nothing_waits_nothing_is_said(jobs: list[Job]) -> None:
    assert explain(jobs) == ""


def test_only_jobs_of_snakemake_are_read_from_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["PENDING|PartitionConfig|4|16000M|rule_notebook_01", "PENDING|Priority|1|1G|(null)", "squeue: warning"]
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    squeue.chmod(squeue.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert queue() == [WAITS._replace(rule="rule_notebook_01")]
    squeue.write_text("#!/bin/sh\nexit 1\n")
    assert queue() == []


def test_the_watch_tells_each_answer_once(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([[WAITS], [WAITS], [], [WAITS], [WAITS._replace(reason="Priority")]])
    done = []

    def read() -> list[Job]:
        jobs = next(answers, None)
        if jobs is None:
            done.append(True)
            return []
        return jobs

    stop = watch(every=0.01, read=read)
    for _ in range(500):
        if done:
            break
        stop.wait(0.01)
    stop.set()
    told = capsys.readouterr().err.splitlines()
    assert ["PartitionConfig" in line for line in told] == [True, True, False]
