"""A run's metrics.jsonl -> curves that are light enough to draw: loss by tokens and by FLOPs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from llm.compare.entries import Entry
from llm.errors import DamagedError
from llm.run import log, metrics_of

CURVES = ("val/bits_per_byte", "val/loss", "train/loss")
MOST_POINTS = 1000  # of a curve
POINTS_IN_ALL = 20_000  # of the curves of one metric: what a browser draws without delay
DIGITS = 5
_SAID = re.compile(r"a token takes ([\d.e+]+) FLOPs")


@dataclass(frozen=True)
class Curves:
    """What one run measured as it went."""

    flops_per_token: float | None  # forward and backward, as the run counted them
    series: dict[str, tuple[list[int], list[float]]]  # metric -> tokens, values
    num_measured: dict[str, int]  # metric -> points before any was left out


def read_curves(entry: Entry, *, names: Sequence[str] = CURVES, most_points: int = MOST_POINTS) -> Curves:
    """The curves of an entry, in at most so many points; those that are no numbers are left out."""
    if entry.run is None:
        return Curves(None, {}, {})
    try:
        records = metrics_of(entry.run)
    except DamagedError as error:
        log.warning("its curves are left out: %s", error)
        records = []
    series, measured = {}, {}
    for name in names:
        points = [(r["tokens"], r[name]) for r in records if name in r and isfinite(r[name])]
        if points:
            kept = thinned(points, most_points)
            series[name] = ([int(tokens) for tokens, _ in kept], [rounded(value) for _, value in kept])
            measured[name] = len(points)
    return Curves(_flops_per_token(records, entry.run.path / "log.txt"), series, measured)


def points_each(num_runs: int) -> int:
    """How many points a curve may have, where there are so many."""
    return max(50, min(MOST_POINTS, POINTS_IN_ALL // max(1, num_runs)))


def thinned(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """The first, the last, and of each stretch between the lowest and the highest: no spike is lost."""
    if len(points) <= most:
        return points
    inner = points[1:-1]
    stretches = max(1, (most - 2) // 2)
    kept = [points[0]]
    for i in range(stretches):
        part = inner[len(inner) * i // stretches : len(inner) * (i + 1) // stretches]
        ends = {min(range(len(part)), key=lambda n: part[n][1]), max(range(len(part)), key=lambda n: part[n][1])}
        kept += [part[n] for n in sorted(ends)]
    return [*kept, points[-1]]


def rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _flops_per_token(records: list[dict[str, Any]], log_file: Path) -> float | None:
    """From the metrics; of a run that an earlier version made, from its log, where it has 3 digits."""
    last = next((r for r in reversed(records) if r.get("train/flops") and r.get("tokens")), None)
    if last:
        return float(last["train/flops"] / last["tokens"])
    try:
        said = _SAID.findall(log_file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return float(said[-1]) if said else None
