"""A pre-commit hook: fail for files too large for this repository (300 kB a notebook, 1 MB anything else)."""

import sys
from pathlib import Path

LIMITS = {".ipynb": 300_000}
LIMIT = 1_000_000


def main() -> None:
    """Check the files named on the command line."""
    sizes = {name: Path(name).stat().st_size for name in sys.argv[1:] if Path(name).is_file()}
    large = [
        f"{name}: {size / 1000:.0f} kB, at most {limit / 1000:.0f} kB are allowed"
        for name, size in sizes.items()
        if size > (limit := LIMITS.get(Path(name).suffix, LIMIT))
    ]
    sys.exit("\n".join(large) or None)


if __name__ == "__main__":
    main()
