"""The YAML files of conf/ and of folders that the command line names -> refused, where aliases stand for too much.

Hydra writes out each alias (`*name`), so that nine lines of nine aliases each are 387 million values.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from llm.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"
MOST_VALUES = 100_000  # of a file: the largest of conf/ has a few dozen
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FOLDER = re.compile(r"(?:--config-dir|-cd|--config-path|-cp)(?:=(?P<joined>.+))?")


def check_aliases(arguments: Sequence[str]) -> None:
    """Look at every YAML file of conf/ and of the folders that these arguments of the command line name.

    Raises:
        ConfigError: the aliases of one stand for too much, or for themselves.
    """
    for folder in [CONF, *_folders(arguments)]:
        for path in sorted(folder.rglob("*.yaml")):
            text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
            if "&" in text and "*" in text and (reason := _fault(text)):
                raise ConfigError(f"{path}: {reason}. Write out what is meant.")


def _folders(arguments: Sequence[str]) -> Iterator[Path]:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if found := _FOLDER.fullmatch(argument):
            yield Path(found["joined"] or following)
        elif argument.startswith("hydra.searchpath="):
            listed = argument.partition("=")[2].strip("[]").split(",")
            yield from (Path(each.strip(" '\"").removeprefix("file://")) for each in listed)


def _fault(text: str) -> str | None:
    try:
        number = _values(yaml.compose(text, _LOADER), {})
    except RecursionError:
        return "its values lie too deep in each other"
    except yaml.YAMLError:
        return None  # Hydra says it, if the file is asked for
    return f"its aliases stand for {number:.2g} values" if number > MOST_VALUES else None


def _values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """How many values a node is, written out; one that holds itself is without end."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is known: where it turns up in itself, it is
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]
