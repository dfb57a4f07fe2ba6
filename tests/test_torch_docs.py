"""data=torch_docs: the docstrings of an installed package as English text."""

import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from llm.demo import english
from llm.errors import MachineError

LONG = ("Returns what a caller asked for. " * 10).strip()


def package(folder: Path) -> ModuleSpec:
    (folder / "nn").mkdir()
    (folder / "__init__.py").write_text(f'"""{LONG}"""\n\ndef short():\n    """Too short."""\n')
    method = f'    async def forward(self):\n        """{LONG}"""\n'
    (folder / "nn" / "layer.py").write_text(f'class Layer:\n    """First.\n\n    {LONG}\n    """\n\n{method}')
    (folder / "nn" / "broken.py").write_text(f'"""{LONG}"""\nprint "Python 2"\n')
    spec = ModuleSpec("torch", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return spec


def test_each_docstring_is_written_once_without_its_indentation(monkeypatch, tmp_path):
    (tmp_path / "torch").mkdir()
    spec = package(tmp_path / "torch")
    monkeypatch.setattr(english, "find_spec", lambda _: spec)
    english.write_torch_docs(tmp_path / "data" / "torch_docs.jsonl")
    lines = (tmp_path / "data" / "torch_docs.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == [LONG, f"First.\n\n{LONG}"]


def test_without_torch_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(english, "find_spec", lambda _: None)
    with pytest.raises(MachineError, match="torch, which is not installed"):
        english.write_torch_docs(tmp_path / "torch_docs.jsonl")
