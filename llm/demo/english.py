"""The documentation of the functions and classes of torch -> JSON lines of English text: data=torch_docs.

Every installation has it, so a model of English to adapt to Korean can be trained anywhere, without the hub.
"""

import ast
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from llm.errors import MachineError
from llm.run.console import log
from llm.run.files import write_text

SHORTEST = 200  # characters of a text
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def write_torch_docs(path: Path) -> None:
    """Write each docstring of torch once, one record a text.

    Raises:
        MachineError: torch is not installed as source files.
    """
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise MachineError("data=torch_docs is made of torch, which is not installed. Run make install.")
    root = Path(next(iter(spec.submodule_search_locations)))
    texts = list(dict.fromkeys(text for file in sorted(root.rglob("*.py")) for text in docstrings(file)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    log.info("%s: %d records made of the documentation of torch", path, len(texts))


def docstrings(file: Path) -> Iterator[str]:
    """The texts of a source file that are long enough, without their indentation; none if it does not parse."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, _DOCUMENTED) else None
        if text and len(text) >= SHORTEST:
            yield text
