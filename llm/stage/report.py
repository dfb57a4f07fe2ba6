"""What an evaluation measured, nested as in results.json -> flat numbers under the names of metrics, and a table."""

from typing import Any

from rich.table import Table
from rich.text import Text

ABSENT = "-"
MEASURED = ("loss", "bits_per_byte")


def flat(results: dict[str, Any]) -> dict[str, float]:
    """The numbers of results.json as W&B and llm.compare have them: val/..., answers/..., probe/..., writing/..."""
    text = results.get("text", {})
    numbers = {f"val/{name}": text[name] for name in MEASURED if text}
    for part, found in text.get("parts", {}).items():
        numbers |= {f"val/{name}/{part}": found[name] for name in MEASURED}
    numbers |= {f"answers/{name}": value for name, value in results.get("answers", {}).items()}
    for name, probe in results["probes"].items():
        numbers |= {f"probe/{name}": probe["accuracy"]}
        numbers |= {f"probe/{name}_{key}": probe[key] for key in ("items", "low", "high")}
        numbers |= {f"probe/{name}/{kind}": share["accuracy"] for kind, share in probe.get("kinds", {}).items()}
    numbers |= {f"writing/{name}": value for name, value in results["writing"].items()}
    for name, metrics in results["tasks"].items():
        numbers |= {f"task/{name}/{metric}": value for metric, value in metrics.items()}
    return {name: value for name, value in numbers.items() if isinstance(value, int | float)}


def table(results: dict[str, Any], *, title: str) -> Table:
    """A row for each number, with its interval, what chance gives and how much was asked, where it has these."""
    made = Table(title=Text(title), highlight=False)
    for column in ("measure", "value", "95 % interval", "chance", "items"):
        made.add_column(column, justify="left" if column == "measure" else "right", no_wrap=column == "measure")
    for name, value in flat({**results, "probes": {}}).items():
        made.add_row(Text(name), _shown(value))
    for name, probe in results["probes"].items():
        chance = f"{probe['chance']:.0%}"
        made.add_row(Text(f"probe/{name}"), *_share(probe), chance, str(probe["items"]))
        for kind, share in probe.get("kinds", {}).items():
            made.add_row(Text(f"  {kind}"), *_share(share), chance, str(share["items"]))
    return made


def _share(share: dict[str, Any]) -> tuple[str, str]:
    value = ABSENT if share["accuracy"] is None else f"{share['accuracy']:.1%}"
    return value, f"{share['low']:.1%} to {share['high']:.1%}"


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
