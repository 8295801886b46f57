"""Kills a batch again and again, and looks whether it ends as if nothing had happened: `make soak`.

One batch of notebooks runs undisturbed. A second one, with its own folder of runs, is killed (SIGKILL to the whole
process group) after random times, started again each time, met by a second batch now and then, and finds a file of a
finished run cut in half, and before all that a disk that is full. In the end both must have left the same tables, byte
for byte. Tables with a clock in them are not compared: time is no part of a result.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
LINKED = ("notebooks", "data", "eeutils", "workflow")
CLOCKS = ("second", "ms", "clock", "wall", "milli", "time")
"""A table whose header has one of these words measures time."""


@dataclass
class Batch:
    """One batch in a folder of its own.

    Attributes:
        folder: where `reproduced/` and the runs lie.
        targets: notebooks, by name; none for all.
    """

    folder: Path
    targets: list[str]
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        for name in LINKED:
            (self.folder / name).symlink_to(ROOT / name)
        self.environment = os.environ | {"EEUTILS_RUNS": str(self.runs), "ACCELERATE_MIXED_PRECISION": "no"}

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def start(self, disk: str = "") -> subprocess.Popen[bytes]:
        """The batch as `make reproduce` starts it, in a process group of its own; with `disk`, such as "20m", its runs
        go to an empty disk of that size, which only this batch sees."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
        command += ["--directory", str(self.folder), "--rerun-incomplete", "--keep-going", "--nolock"]
        command += [f"reproduced/smoke/movie/minilm-l6/seed0/{name}.ipynb" for name in self.targets]
        command += ["--config", "profile=smoke", "jobs=2"]
        if disk:
            mounted = 'mount -t tmpfs -o size="$0" none "$1" && shift && exec "$@"'
            command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mounted, disk, str(self.runs), *command]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def finish(self) -> float:
        """Run to the end: seconds."""
        started = time.monotonic()
        if self.start().wait() != 0:
            sys.exit(f"the batch in {self.folder} failed:\n{self.log.read_text()[-3000:]}")
        return time.monotonic() - started

    def tables(self) -> dict[str, bytes]:
        """Every table that the notebooks left, by its path, but for those that measure time."""
        found = {}
        for path in sorted((self.folder / "reproduced").rglob("*.csv")):
            header = path.read_text(encoding="utf-8").partition("\n")[0].lower()
            if not any(word in header for word in CLOCKS):
                found[str(path.relative_to(self.folder))] = path.read_bytes()
        return found


def kill(process: subprocess.Popen[bytes]) -> None:
    """The whole group at once, as a machine that goes down does."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Kernels have groups of their own, and end when they find that nobody is left.
    time.sleep(6)


def cut_a_file(batch: Batch, chance: random.Random) -> str:
    """Halve one file of a finished run, see the batch name it, and take the run away as it asks. "" without a run."""
    files = sorted(path for path in batch.runs.glob("*/*.safetensors") if "checkpoint" not in str(path))
    if not files:
        return ""
    file = chance.choice(files)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    # Whoever reads it says so; who does not, runs on.
    process = batch.start()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        kill(process)
    shutil.rmtree(file.parent)
    return f"{file.parent.name}/{file.name}"


def on_a_full_disk(batch: Batch) -> str:
    """Where no model fits on the disk the batch must fail and say why, and leave nothing that the next one trips over.
    "" where this system lets nobody mount a disk of his own."""
    batch.runs.mkdir(exist_ok=True)
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True, check=False).returncode:
        return ""
    before = batch.log.stat().st_size if batch.log.exists() else 0
    code = batch.start(disk="20m").wait()
    said = batch.log.read_text(encoding="utf-8", errors="replace")[before:]
    told = [line.strip() for line in said.splitlines() if "the disk is full" in line]
    if code == 0 or not told:
        sys.exit(f"a full disk went unnoticed (status {code}):\n{said[-3000:]}")
    return told[0]


def two_at_once(batch: Batch) -> None:
    """A second batch in the same folder must be refused in a sentence, and must not disturb the first."""
    first = batch.start()
    time.sleep(8)
    second = batch.start()
    code = second.wait()
    if first.poll() is None and code == 0:
        sys.exit("two batches ran in one folder at the same time")
    kill(first)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/soak/kills.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which it is killed")
    parser.add_argument("--notebooks", nargs="*", default=[], help="by name; all by default")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    with TemporaryDirectory() as folder:
        quiet, disturbed = (Batch(Path(folder) / name, given.notebooks) for name in ("quiet", "disturbed"))
        seconds = quiet.finish()
        print(f"undisturbed: {seconds:.0f} s, {len(quiet.tables())} tables", flush=True)
        print(f"a full disk: {on_a_full_disk(disturbed) or 'not tried, nobody may mount one here'}", flush=True)
        killed = ended = 0
        for number in range(1, given.kills + 1):
            process, moment = disturbed.start(), chance.uniform(2, max(10.0, seconds / 4))
            try:
                process.wait(timeout=moment)
                ended += 1
            except subprocess.TimeoutExpired:
                kill(process)
                killed += 1
                print(f"kill {number}: after {moment:.0f} s", flush=True)
            if number % 7 == 0:
                two_at_once(disturbed)
                print("two at once: the second was refused", flush=True)
            if number % 5 == 0 and (name := cut_a_file(disturbed, chance)):
                print(f"cut in half: {name}", flush=True)
        disturbed.finish()
        left = [str(path) for path in disturbed.folder.rglob(".partial-*")]
        wanted, got = quiet.tables(), disturbed.tables()
        apart = [name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name)]
        print(f"{killed} kills, {ended} ends by itself; {len(wanted)} tables compared, {len(apart)} differ: {apart}")
        print(f"half-written names that nothing reads: {len(left)}")
        sys.exit(1 if apart or not wanted else 0)


if __name__ == "__main__":
    main()
