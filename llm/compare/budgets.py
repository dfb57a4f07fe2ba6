"""Runs of several tokenizers -> bits per byte at equal bytes of text and at equal FLOPs, and which are told apart.

Each run's validation.jsonl is one curve: what it was fed, and the nats of the same blocks of held-out documents. Both
rankings are read off it. Where the learning rate is constant, each of its points is that of a whole run of that length;
under a schedule that decays, what is read before the end is worse than a run that ends there would be.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log, sqrt
from typing import Any

import numpy as np

from llm.compare.ranking import Choice, Ranking
from llm.run.console import ABSENT, TextTable, shown
from llm.run.record import VALIDATION

Array = np.ndarray[Any, Any]
AXES = {"bytes": "equal bytes of text", "flops": "equal FLOPs"}
NOTE = (
    "Differences from the best are paired over held-out documents and seeds; an interval holds 95 % of what both could "
    "have come to by chance (documents drawn anew; seeds by Student's t). Where it has 0 in it, the two are not told "
    "apart. With many rows some intervals miss 0 by chance alone."
)
DRAWS = 4000  # of documents, and of the chance of seeds
INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True, eq=False)
class Curve:
    """What a run had been fed at each validation, and what each block of held-out documents then cost."""

    bytes: Array  # (validations,) of raw training text
    flops: Array  # (validations,) forward and backward; the head counts, and an embedding that is looked up takes none
    raw_bytes: Array  # (blocks,)
    nats: Array  # (validations, blocks), lost bytes charged

    def at(self, axis: str, budget: float) -> Array:
        """(blocks,): nats at a budget, between two validations in a straight line over its logarithm.

        Raises:
            ValueError: the budget lies before the first validation that follows a step, or after the last.
        """
        if not self.covers(axis, budget):
            raise ValueError(f"{budget:g} {axis} lie outside of what was measured")
        fed = getattr(self, axis)
        after = int(np.searchsorted(fed, budget))
        if fed[after] == budget:
            return np.asarray(self.nats[after])
        share = log(budget / fed[after - 1]) / log(fed[after] / fed[after - 1])
        return np.asarray((1 - share) * self.nats[after - 1] + share * self.nats[after])

    def covers(self, axis: str, budget: float) -> bool:
        """Whether a budget lies between two validations, of which the first follows a step."""
        fed = getattr(self, axis)
        return bool(fed[fed > 0][:1] <= budget) and bool(budget <= fed[-1])


def read_curve(records: Sequence[Mapping[str, Any]]) -> Curve:
    """The curve of a run, by the records of its validation.jsonl: one at least."""
    columns = {name: np.array([record[name] for record in records]) for name in ("bytes", "flops", "nats")}
    return Curve(raw_bytes=np.array(records[0]["raw_bytes"]), **columns)


@dataclass(frozen=True)
class Standing:
    """What a choice comes to at a budget, and what it differs from the best one by."""

    name: str
    seeds: list[float]  # bits per byte of each
    bits_per_byte: float  # their mean
    differences: list[float]  # from the best, of each seed from that of the same place
    interval: tuple[float, float] | None  # 95 %, of the mean difference; None of the best, and of a single seed

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval of its difference from the best leaves zero out."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def standings(
    curves: Mapping[str, Sequence[Curve]], axis: str, budget: float, *, draws: int = DRAWS, seed: int = 0
) -> list[Standing]:
    """Each choice, by the curves of its seeds, at a budget of `bytes` or `flops`; the best first.

    Differences are paired: over documents, which are the same for all and are drawn with replacement, and over seeds.
    Of three seeds drawn with replacement an interval would be far too narrow; their chance is drawn from Student's t in
    its place, with the deviation of the paired differences. So an interval holds both, and with one seed there is none.

    Raises:
        ValueError: curves of other held-out text, or a budget that one has not come to.
    """
    raw_bytes = next(iter(curves.values()))[0].raw_bytes
    if any(not np.array_equal(each.raw_bytes, raw_bytes) for of in curves.values() for each in of):
        raise ValueError("they were not measured on the same held-out documents")
    nats = {name: np.stack([each.at(axis, budget) for each in of]) for name, of in curves.items()}  # (seeds, blocks)
    bits = {name: of.sum(1) / log(2) / raw_bytes.sum() for name, of in nats.items()}
    order = sorted(bits, key=lambda name: float(bits[name].mean()))
    drawn = np.random.default_rng(seed).multinomial(len(raw_bytes), [1 / len(raw_bytes)] * len(raw_bytes), draws)
    found = []
    for name in order:
        pairs = min(len(bits[name]), len(bits[order[0]]))
        of_blocks = nats[name][:pairs] - nats[order[0]][:pairs]  # (seeds, blocks)
        differences = bits[name][:pairs] - bits[order[0]][:pairs]
        interval = None
        if pairs > 1 and name != order[0]:
            of_documents = drawn @ of_blocks.mean(0) / log(2) / (drawn @ raw_bytes)
            chance = np.random.default_rng(seed + 1).standard_t(pairs - 1, draws)
            spread = of_documents + chance * differences.std(ddof=1) / sqrt(pairs)
            low, high = np.percentile(spread, INTERVAL)
            interval = float(low), float(high)
        mean = float(bits[name].mean())
        found.append(Standing(name, bits[name].tolist(), mean, differences.tolist(), interval))
    return found


@dataclass(frozen=True)
class BudgetTable:
    """Choices of one model at one budget."""

    model: str
    axis: str
    budget: float
    choices: dict[str, Choice]  # by the names in the standings
    standings: list[Standing]
    left_out: list[str]  # whose first validation comes later

    @property
    def title(self) -> str:
        size = f"{self.budget / 1e6:.3g} MB" if self.axis == "bytes" else f"{self.budget:.3g} FLOPs"
        return f"At {AXES[self.axis]}, {size} for each run of {self.model}"

    @property
    def notes(self) -> list[str]:
        """What is not in the table."""
        late = ", ".join(self.left_out)
        return (
            [f"Not validated early enough to be read there: {late}. Lower trainer.validate_every_steps."]
            if late
            else []
        )

    @property
    def table(self) -> TextTable:
        head = ["tokenizer", "bits per byte", "seeds", "behind the best by", "95 % interval", "of the seeds", "so"]
        head += ["learning rate", "loses"]
        rows = []
        for place, each in enumerate(self.standings):
            config, told = self.choices[each.name].best.config, self.choices[each.name].outcome
            lost = told["lost_bytes_share"].mean if "lost_bytes_share" in told else 0.0
            cells = [f"{place + 1}. {each.name}", f"{each.bits_per_byte:.4f}", _span(each.seeds, "")]
            cells += [f"{each.bits_per_byte - self.standings[0].bits_per_byte:+.4f}" if place else ABSENT]
            cells += [_span(each.interval, "+") if each.interval else ABSENT]
            cells += [_span(each.differences, "+") if place else ABSENT, self._verdict(place)]
            rows.append(
                [*cells, shown(config["optimizer"]["learning_rate"]), f"{100 * lost:.2g} %" if lost else ABSENT]
            )
        return TextTable(head, rows)

    def _verdict(self, place: int) -> str:
        each = self.standings[place]
        if place == 0:
            return "the best"
        return "one seed" if each.interval is None else "worse" if each.is_told_apart else "not told apart"


def budget_tables(ranking: Ranking) -> list[BudgetTable]:
    """Of each model that finished runs of several tokenizers have, a table for each axis.

    The budget is what the least fed of its runs came to. Choices are left out that were measured on other documents
    than the first, and whose runs are older than validation.jsonl. There is no table where validations are so few that
    no two choices have one before the budget and one after it.
    """
    if len({json.dumps(choice.best.config.get("tokenizer")) for choice in ranking.choices}) < 2:
        return []
    by_model: dict[str, dict[str, tuple[Choice, list[Curve]]]] = defaultdict(dict)
    for choice in ranking.choices:
        if choice.best.is_done and (curves := _curves(choice)):
            config = choice.best.config
            named, of_model = _name(config, ranking.choices), by_model[json.dumps(config["model"], sort_keys=True)]
            if all(np.array_equal(curves[0].raw_bytes, of[0].raw_bytes) for _, of in of_model.values()):
                of_model.setdefault(named, (choice, curves))  # of one tokenizer at several rates the best
    tables = [
        _budget_table(next(iter(of.values()))[0].best.config["model"]["name"], axis, of)
        for of in by_model.values()
        if len(of) > 1
        for axis in AXES
    ]
    return [table for table in tables if table.standings]


def _curves(choice: Choice) -> list[Curve]:
    """Of each seed that is done."""
    lines = [entry.lines(VALIDATION) for entry in choice.entries if entry.is_done]
    return [curve for each in lines if each and (curve := read_curve(each)).bytes[-1] > 0]


def _name(config: Mapping[str, Any], choices: Sequence[Choice]) -> str:
    """That of a tokenizer; with its size, where these differ."""
    tokenizer = config["tokenizer"]
    sizes = {each.best.config["tokenizer"].get("vocab_size") for each in choices if "tokenizer" in each.best.config}
    return str(tokenizer["name"]) + (f" {tokenizer['vocab_size']:,}" if len(sizes) > 1 else "")


def _budget_table(model: str, axis: str, of: Mapping[str, tuple[Choice, list[Curve]]]) -> BudgetTable:
    curves = {name: curves for name, (_, curves) in of.items()}
    budget = min(float(getattr(curve, axis)[-1]) for each in curves.values() for curve in each)
    choices = {name: choice for name, (choice, _) in of.items()}
    there = {name: each for name, each in curves.items() if all(curve.covers(axis, budget) for curve in each)}
    late = [name for name in curves if name not in there]
    return BudgetTable(model, axis, budget, choices, standings(there, axis, budget) if len(there) > 1 else [], late)


def _span(values: Sequence[float], sign: str) -> str:
    return f"{min(values):{sign}.4f} to {max(values):{sign}.4f}"


def agreements(tables: Sequence[BudgetTable]) -> Iterator[str]:
    """In how many pairs of tokenizers each two tables have the same order, in words."""
    for one, other in combinations(tables, 2):
        names = [[each.name for each in table.standings] for table in (one, other)]
        where = [f"{table.model} at {AXES[table.axis]}" for table in (one, other)]
        yield f"{where[0]} and {where[1]} order {100 * agreement(*names):.0f} % of pairs alike."


def as_csv(tables: Sequence[BudgetTable]) -> str:
    """A row for each run of each table, in full precision."""
    head = [
        "model",
        "at equal",
        "budget",
        "rank",
        "tokenizer",
        "vocab_size",
        "learning_rate",
        "lost_bytes_share",
        "seed",
    ]
    head += ["bits_per_byte", "difference", "interval_low", "interval_high", "told_apart"]
    rows: list[list[Any]] = []
    for table in tables:
        for rank, each in enumerate(table.standings, 1):
            choice = table.choices[each.name]
            told, done = choice.outcome, [entry for entry in choice.entries if entry.is_done]
            known = [told[name].mean if name in told else "" for name in ("vocab_size", "lost_bytes_share")]
            rate = choice.best.config["optimizer"]["learning_rate"]
            for place, bits in enumerate(each.seeds):
                difference = each.differences[place] if place < len(each.differences) else ""
                rows.append([table.model, table.axis, table.budget, rank, each.name, known[0], rate, known[1]])
                rows[-1] += [done[place].config["seed"], bits, difference, *(each.interval or ("", ""))]
                rows[-1] += [each.is_told_apart if rank > 1 and each.interval else ""]
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([head, *rows])
    return file.getvalue()


def agreement(one: Sequence[str], other: Sequence[str]) -> float:
    """The share of pairs of names that two rankings have in the same order; 1 of fewer than two names."""
    names = [name for name in one if name in other]
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    return sum(other.index(a) < other.index(b) for a, b in pairs) / len(pairs) if pairs else 1.0
