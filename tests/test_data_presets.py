"""The presets: each reads its set, made to the published shape, and the doctor names it."""

from dataclasses import replace
from pathlib import Path

import pytest

from llm.data.files import open_files
from llm.data.records import Fault
from llm.data.sources.presets import presets
from llm.inspect import diagnose
from tests.published import SETS, write_set


def test_every_preset_has_a_set_to_be_tested_by() -> None:
    assert sorted(SETS) == sorted(presets())


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_preset_reads_its_set(tmp_path: Path, name: str) -> None:
    texts = write_set(name, tmp_path)
    records = list(open_files(replace(presets()[name], path=str(tmp_path))).records())
    assert [record.reason if isinstance(record, Fault) else record.text for record in records] == texts


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_doctor_names_the_preset_of_a_set(tmp_path: Path, name: str) -> None:
    texts = write_set(name, tmp_path)
    found = diagnose(str(tmp_path))
    assert (found.preset, found.fits, found.usable) == (name, 1.0, len(texts))


def test_a_preset_of_a_set_in_three_lines_reads_it(tmp_path: Path) -> None:
    import yaml

    from llm.data.sources.presets import preset

    (tmp_path / "a.json").write_text('{"items": [{"body": {"ko": "가"}}, {"body": {"ko": "나"}}]}', encoding="utf-8")
    lines = "name: mine\nkind: text\ntext_field: items[].body.ko\n"
    assert len(lines.splitlines()) == 3
    records = open_files(preset(yaml.safe_load(lines), path=str(tmp_path))).records()
    assert [record.text for record in records if not isinstance(record, Fault)] == ["가\n나"]
