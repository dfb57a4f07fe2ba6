"""The layers: each part of llm/ imports only the parts on its left, and Hydra stays at the door."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PARTS = "environment credentials errors config run tokenizer data model optimizer logger trainer"
LAYERS = [*_PARTS.split(), "evaluation", "export", "stage", "tool"]
HEAVY = ("torch", "transformers", "pytorch_lightning", "peft", "wandb", "tokenizers", "numpy", "rich")
FILES = sorted(path for path in (ROOT / "llm").rglob("*.py") if path != ROOT / "llm" / "__init__.py")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, `from llm import x` as llm.x."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "llm":
            yield from (f"llm.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def layer(part: str) -> int:
    """A part's place; a module that is no part is a tool."""
    return LAYERS.index(part) if part in LAYERS else LAYERS.index("tool")


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "llm").parts[0].removesuffix(".py")


def test_imports_point_one_way_and_no_two_parts_import_each_other():
    found = {(path, name.split(".")[1]) for path in FILES for name in imports(path) if name.startswith("llm.")}
    assert not [(str(path), part) for path, part in found if layer(part) > layer(part_of(path))]
    parts = {(part_of(path), part) for path, part in found}
    assert not [(one, other) for one, other in parts if one < other and (other, one) in parts]


def test_only_config_imports_hydra():
    found = [(str(path), name) for path in FILES if part_of(path) != "config" for name in imports(path)]
    assert not [(path, name) for path, name in found if name.split(".")[0] in ("hydra", "omegaconf")]


def test_the_environment_is_read_and_changed_in_one_module():
    for path in FILES:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert path == ROOT / "llm" / "environment.py" or not names & {"environ", "getenv", "putenv"}, path


def test_composing_imports_nothing_heavy():
    code = f"import train, sys; print([name for name in {HEAVY} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
