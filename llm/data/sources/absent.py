"""A path that names no file -> what there is in its place, in the words of an error."""

import os
import shlex
from difflib import get_close_matches
from pathlib import Path

from llm.config import to_paste
from llm.run import composed

SHOWN_NAMES = 5


def explain_absent(path: str, key: str | None = None) -> str | None:
    """What is missing of a path, and the nearest name that is there; None where the path exists, or is a URL.

    `key`: the setting that it was typed as.
    """
    if "://" in path or Path(path).exists():
        return None
    typed = f"{key}={path}" if key else path
    if any(sign in path for sign in "*?["):
        return f"{typed}: no file matches it. Give a file, a folder, a quoted glob or a URL."
    missing = _first_missing(Path(path))
    said = f"{typed} does not exist" + ("" if missing == Path(path) else f": there is no {missing}")
    names = {composed(name).lower(): name for name in sorted(os.listdir(missing.parent)) if not name.startswith(".")}
    if close := get_close_matches(composed(missing.name).lower(), names, n=1):
        meant = str(missing.parent / names[close[0]] / Path(path).relative_to(missing))
        return f"{said}. Did you mean {to_paste(key, meant) if key else shlex.quote(meant)}?"
    shown = ", ".join([*names.values()][:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
    return f"{said}. {missing.parent.resolve()} has {shown or 'nothing in it'}."


def _first_missing(path: Path) -> Path:
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    return missing
