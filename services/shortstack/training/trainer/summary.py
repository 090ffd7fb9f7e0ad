"""What a run amounts to: ``summary.json``, ``loss.png``, ``samples.md``, made from what was logged."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from shortstack.training.trainer.files import write_atomic

__all__ = ["PEAK_FLOPS", "draw_loss", "flops_per_token", "mfu", "peak_memory_mb", "samples_page", "summarise"]

PEAK_FLOPS: Final[Mapping[str, float]] = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}
"""Dense bf16 FLOP/s by a part of the device's name, first match; NVIDIA's data sheets."""


def summarise(metrics: Sequence[Mapping[str, Any]], *, rows_per_step: int) -> dict[str, Any]:
    """Totals over the whole run, however many attempts it took.

    Each line of ``metrics`` holds the seconds since the one before it in its attempt, evaluation and saving
    included; so the sum is the time that the kept steps took.
    """
    steps = [line for line in metrics if "loss" in line]
    seconds = math.fsum(line["seconds"] for line in steps)
    last = steps[-1]["step"] if steps else 0
    tokens = steps[-1]["tokens"] if steps else 0
    evaluations = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    return {
        "steps": last,
        "train_runtime": round(seconds, 3),
        "train_samples_per_second": _rate(last * rows_per_step, seconds),
        "train_steps_per_second": _rate(last, seconds),
        "train_loss": math.fsum(line["loss"] for line in steps) / len(steps) if steps else None,
        "eval_loss": evaluations[-1] if evaluations else None,
        "tokens": tokens,
        "tokens_per_second": _rate(tokens, seconds),
    }


def _rate(amount: float, seconds: float) -> float | None:
    return round(amount / seconds, 3) if seconds > 0 else None


def flops_per_token(parameters: int, layers: int, hidden: int, length: float, *, adapter: bool) -> float:
    """Floating-point operations to train on one token.

    Full: 6N + 3·attention. With an adapter the base's weight gradients are not computed: 4N + 3·attention.
    Attention forward is 4·layers·hidden·length. After PaLM (Chowdhery et al. 2022), appendix B.

    Args:
        parameters: N, all weights of the model without its adapter.
        length: mean row length in tokens.
    """
    return (4 if adapter else 6) * parameters + 3 * 4 * layers * hidden * length


def mfu(tokens_per_second: float | None, flops: float, device: str) -> tuple[float | None, str | None]:
    """(share of the device's peak, None), or (None, why it is not known)."""
    peak = next((peak for name, peak in PEAK_FLOPS.items() if name in device), None)
    if peak is None:
        return None, f"no published bf16 peak is known for {device}"
    if tokens_per_second is None:
        return None, "no step was timed"
    return round(tokens_per_second * flops / peak, 4), None


def peak_memory_mb() -> float:
    """The most memory this process has held so far, in MiB: the accelerator's if it computes there."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return round(float(torch.cuda.max_memory_allocated()) / 2**20, 1)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def draw_loss(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The loss of training and evaluation over steps, as a PNG of 800 by 450 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "evaluation", "o--")):
        points = [(line["step"], line[key]) for line in metrics if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Software": None})


def samples_page(questions: Sequence[str], before: Sequence[str], after: Sequence[str], path: Path) -> None:
    """The questions with the base's answers and the trained model's, as Markdown."""
    lines = ["# Answers before and after training", ""]
    for question, old, new in zip(questions, before, after, strict=True):
        lines += [f"## {question}", "", "Before:", "", _quoted(old), "", "After:", "", _quoted(new), ""]
    write_atomic(path, "\n".join(lines).encode())


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in (text.strip() or "(nothing)").splitlines())
