"""`python -m eeutils try PATH`: is early exiting worth it on data of your own?

It trains the plain model and the recommended one on your table (csv, tsv, jsonl, parquet, a folder of them, or
owner/name:configuration on the hub), and prints what decides: the score kept, the time saved, and the line of code that
uses the model. It goes on where it stopped.
"""

import argparse
import os
import re
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """The command line: see the module's first lines."""
    about, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m eeutils", description="Early exiting, tried on your own data.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("try", help="train, measure, decide", description=f"{about}\n{more}")
    one.add_argument("path", help="a table, a folder of tables, owner/name on the hub, or a task of this repository")
    one.add_argument("--profile", default="quick", help="smoke (seconds, means nothing), quick, study or full")
    one.add_argument("--backbone", default="minilm-l6", help="an encoder: minilm-l6, mpnet-base, a folder, a hub name")
    one.add_argument("--seed", type=int, default=0, help="of heads, batches and dropout")
    one.add_argument("--save-to", type=Path, help="where tables and model go; by default a folder beside the runs")
    given = parser.parse_args(arguments)
    _fast_arithmetic()
    # Only now: they take seconds to import, and read the variable above.
    from eeutils.data.sources import SourceError
    from eeutils.errors import InputError
    from eeutils.trial.session import run

    try:
        run(given.path, given.profile, given.backbone, given.seed, given.save_to)
    except (InputError, SourceError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the same command goes on from where it stopped")


def _fast_arithmetic() -> None:
    """Train in bfloat16 where the processor multiplies it by itself, as `make` does; a set variable decides."""
    processor = Path("/proc/cpuinfo")
    if "ACCELERATE_MIXED_PRECISION" not in os.environ and processor.exists() and not Path("/dev/nvidia0").exists():
        fast = re.search("avx512_bf16|amx_bf16", processor.read_text(encoding="utf-8"))
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if fast else "no"


if __name__ == "__main__":
    main()
