"""``python -m benchmarks [NAME…]``: runs every benchmark, or those named, each in a process of its own.

Each prints its figures, one JSON object a line: ``{"name", "value", "unit", "baseline", "ratio"}``. Run them on an
idle machine. A benchmark that fails is named at the end, and the exit status is 1.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
NO_BENCHMARK: Final = {"__main__.py", "__init__.py", "stub_tgi.py", "on_cluster.py"}
"""What lies beside the benchmarks of one machine and is none of them."""


def main(names: Sequence[str]) -> int:
    """Runs ``names``, or all."""
    known = {file.stem: file for file in sorted(FOLDER.glob("*.py")) if file.name not in NO_BENCHMARK}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.stderr.write(f"There is no benchmark {', '.join(unknown)}. Known: {', '.join(known)}.\n")
        return 64
    failed = [
        name
        for name in names or known
        if subprocess.run([sys.executable, str(known[name])], cwd=FOLDER.parent, check=False).returncode != 0
    ]
    if failed:
        sys.stderr.write(f"Failed: {', '.join(failed)}.\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
