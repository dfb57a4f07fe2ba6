"""The presets: each reads its set, made to the published shape, and the doctor names it."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from llm.config.compose import preset
from llm.config.data import CleaningConfig, LayoutConfig
from llm.data.files import find_files, read_files
from llm.data.records import Record, Rejected
from llm.data.sample import presets
from llm.inspect import diagnose, main
from tests.korean import documents
from tests.published import SETS, VARIANTS, is_json, write_set


def test_every_preset_has_a_set_to_be_tested_by() -> None:
    assert sorted(SETS) == sorted(presets())


def read(name: str, folder: Path) -> list[Record]:
    """All but what the preset leaves out."""
    config = replace(presets()[name], path=str(folder))
    records = read_files(find_files(config), config)
    return [record for record in records if not isinstance(record, Rejected) or record.fix]


def told(name: str, folder: Path) -> list[str]:
    return [str(getattr(each, "messages", getattr(each, "text", each))) for each in read(name, folder)]


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_preset_reads_its_set_and_the_doctor_names_it(tmp_path: Path, name: str) -> None:
    texts = write_set(name, tmp_path)
    assert [getattr(record, "text", str(record)) for record in read(name, tmp_path)] == texts
    found = diagnose(str(tmp_path))
    assert (found.preset, found.fits, found.usable) == (name, 1.0, len(texts))


IN_JSON = [name for name in sorted(SETS) if any(is_json(Path(path).name) for path in SETS[name]()[0])]


@pytest.mark.parametrize("name", IN_JSON)
def test_how_its_json_is_written_changes_nothing_of_a_set(tmp_path: Path, name: str) -> None:
    write_set(name, tmp_path / "plain")
    plain = told(name, tmp_path / "plain")
    for variant, vary in VARIANTS.items():
        write_set(name, tmp_path / variant, vary, packed="한 번 더.zip")
        assert told(name, tmp_path / variant) == plain, variant
    found = diagnose(str(tmp_path / "long lines without a final newline"))
    assert (found.preset, found.fits, found.faults) == (name, 1.0, {})


DOCS = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_documentation_names_every_preset_and_setting() -> None:
    names = [*presets(), *(f.name for config in (LayoutConfig, CleaningConfig) for f in fields(config))]
    assert [name for name in names if f"`{name}`" not in DOCS and f"data.cleaning.{name}" not in DOCS] == ["join"]
    assert "`data.layout.join`" in DOCS


def test_the_documented_example_and_commands_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    assert len(example.splitlines()) == 2
    (tmp_path / "a.json").write_text(
        '{"articles": [{"paragraphs": [{"body": "가"}, {"body": "나"}]}]}', encoding="utf-8"
    )
    config = preset({"name": "my_set", **yaml.safe_load(example)}, path=str(tmp_path / "a.json"))
    records = read_files(find_files(config), config)
    assert [record.text for record in records if not isinstance(record, Rejected)] == ["가\n나"]

    (commands,) = re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "글.txt").write_text("\n\n".join(documents(300)), encoding="utf-8")
    for command in commands.splitlines():
        words = command.split()
        assert words[:3] == ["python", "-m", "llm.inspect"]
        main([str(tmp_path / "set") if word == "data/my-set.zip" else word for word in words[3:]])
        assert "preset: text" in capsys.readouterr().out
