"""The process that torchrun starts: one rank of one attempt of a run.

    DS_ACCELERATOR=cpu torchrun --max-restarts=0 --nproc-per-node=1 \\
        -m shortstack.training.trainer.main --run-dir DIR --attempt 1

With ``--explain DIR`` it prints, as JSON, what the run would do, and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from shortstack.core.errors import ShortstackError
from shortstack.training.trainer.failure import failure_of

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Trains one attempt of a run.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run-dir", type=Path, metavar="DIR", help="run folder with plan.json; train and export there")
    what.add_argument("--explain", type=Path, metavar="DIR", help="print settings, rows and steps; train nothing")
    parser.add_argument("--attempt", type=int, default=1, metavar="K", help="number of this attempt, from 1")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="with --explain: processes to plan for")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    # Two OpenMP threads on two busy cores wait for each other: 0.7 tokens/s instead of 165.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.explain is not None:
        return _explain(options.explain, options.ranks)
    from shortstack.training.trainer.attempt import Clocks, run_attempt
    from shortstack.training.trainer.distributed import Ranks, cuda_available

    ranks = Ranks.of(os.environ, cuda=cuda_available())
    return run_attempt(options.run_dir, options.attempt, ranks, Clocks(time.time, time.monotonic))


def _explain(folder: Path, ranks: int) -> int:
    from shortstack.training.trainer.data import explain
    from shortstack.training.trainer.plan import RunPlan

    try:
        print(json.dumps(explain(RunPlan.read(folder / "plan.json"), ranks), indent=1, ensure_ascii=False))
    except ShortstackError as error:
        print(f"error: {error}", file=sys.stderr)
        return failure_of(error).exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
