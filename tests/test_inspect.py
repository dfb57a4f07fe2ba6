"""The doctor: what it says of a path, in lines and in JSON, and its exit codes."""

import json
import os
from pathlib import Path

import pytest

from llm.config import CleaningLevel
from llm.errors import ConfigError
from llm.inspect import diagnose, leaks, main, show
from tests.korean import documents
from tests.published import lines, write_set, zip_bytes


def test_it_says_what_lies_there_what_fits_and_what_is_wrong(tmp_path: Path) -> None:
    write_set("aihub_books", tmp_path)
    (tmp_path / "깨짐.zip").write_bytes(b"no zip")
    found = diagnose(str(tmp_path))
    shown = show(found)
    assert found.formats == {"json": 2} and found.files == 2
    assert found.repaired_names == [f"{tmp_path}/TL_100.zip!1/책_TEXT_1.json", f"{tmp_path}/TL_100.zip!1/책_INFO.json"]
    assert "preset: aihub_books (fits 100 % of the sampled records" in shown
    assert f"use it: python train.py data=aihub_books 'data.path=\"{tmp_path}\"'" in shown
    assert "yield: 1 of 1 records of the sample" in shown
    assert f"names repaired from cp949: {tmp_path}/TL_100.zip!1/책_TEXT_1.json" in shown
    assert f"sample {tmp_path}/TL_100.zip!1/책_TEXT_1.json:1: " in shown
    assert "wrong, 1 times: is damaged or cut" in shown
    assert f"  {tmp_path}/깨짐.zip: is damaged or cut. Fetch it again, or remove it" in shown


def test_three_documents_are_shown_from_beginning_middle_and_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"글 {n}" for n in range(90)), encoding="utf-8")
    assert [sample["text"] for sample in diagnose(str(tmp_path / "a.txt")).samples] == ["글 0", "글 30", "글 60"]


def test_conversations_are_shown_with_their_roles_and_the_command_that_tunes(tmp_path: Path) -> None:
    write_set("sharegpt", tmp_path)
    found = diagnose(str(tmp_path))
    assert found.samples[0]["text"].startswith("user: ") and "\nassistant: " in found.samples[0]["text"]
    assert "use it: python train.py stage=finetune base=<run> data=sharegpt" in show(found)


def test_of_a_large_archive_a_few_members_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = documents(500)
    (tmp_path / "a.zip").write_bytes(zip_bytes({f"{n:03}.txt": text.encode() for n, text in enumerate(texts)}))
    found = diagnose(str(tmp_path / "a.zip"))
    assert found.members == 500
    assert found.records == found.usable == 24
    assert sum(found.encodings.values()) == 24
    assert [sample["text"] for sample in found.samples][1] == texts[8 * 21][:160]


def test_cleaning_is_counted_on_the_sample(tmp_path: Path) -> None:
    texts = [*documents(20), "전화 010-1234-5678", "전화 010-1234-5678"]
    (tmp_path / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    found = diagnose(str(tmp_path / "a.txt"), level=CleaningLevel.light)
    assert found.cleaning["personal_data"]["documents_changed"] == 2
    assert found.cleaning["exact_duplicates"]["dropped"] == {"the same text came before": 1}
    assert "exact_duplicates dropped 1: the same text came before" in show(found)


def test_leaks_are_counted_in_the_held_out_text_and_an_evaluation_file(tmp_path: Path) -> None:
    texts = documents(300)
    (tmp_path / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (tmp_path / "eval.jsonl").write_bytes(lines({"text": texts[0]}, {"text": "어디에도 없는 글이다"}))
    found = leaks(str(tmp_path / "a.txt"), "text", CleaningLevel.off, str(tmp_path / "eval.jsonl"))
    assert found["held-out text"].documents > 0
    measured = found[str(tmp_path / "eval.jsonl")]
    assert (measured.documents, measured.leaked_documents) == (2, 1)
    assert measured.worst[0]["origin"] == f"{tmp_path}/eval.jsonl:1"


def test_json_is_one_object_with_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(documents(300)), encoding="utf-8")
    main([str(tmp_path), "--json", "--clean", "strict", "--leaks"])
    found = json.loads(capsys.readouterr().out)
    assert found["preset"] == "text" and found["records"] == 100
    assert next(iter(found["cleaning"])) == "characters" and found["leaks"]["held-out text"]["documents"] > 0


def test_the_terminal_shows_leaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(documents(300)), encoding="utf-8")
    main([str(tmp_path / "a.txt"), "--leaks"])
    assert " 8-grams (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "data", "code", "message"),
    [
        ("a.jsonl", b'{"body": "x"}\n', 65, "none of the sampled records can be used"),
        ("a.hwp", b"x", 65, "none of the sampled records can be used"),
        ("a.zip", b"x", 65, "a.zip: is damaged or cut"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_65(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes, code: int, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / name)])
    said = capsys.readouterr()
    assert ended.value.code == code
    assert message in said.err and said.err.count("\n") == 1
    assert "no preset fits" in said.out


def test_a_path_with_nothing_or_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file is there. Give a file, a folder, a quoted glob or a URL"):
        diagnose(str(tmp_path / "nowhere"))
    (tmp_path / "a.txt").write_text("글", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--data nosuch is no choice that reads files. Choose one of .*text"):
        diagnose(str(tmp_path), name="nosuch")


def test_it_reads_no_more_than_its_sample_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(lines(*({"text": text} for text in documents(200))))
        file.truncate(5 * 10**9)  # sparse
    before = os.times().user
    assert diagnose(str(path)).usable == 100
    assert os.times().user - before < 5


def test_a_table_in_an_archive_and_a_json_file_larger_than_the_sample_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set("fineweb2_korean", tmp_path)
    (tmp_path / "a.zip").write_bytes(zip_bytes({"안/a.parquet": (tmp_path / "000.parquet").read_bytes()}))
    found = diagnose(str(tmp_path / "a.zip"))
    assert (found.preset, found.usable) == ("fineweb2_korean", 8)

    texts = documents(200)
    big = {"documents": [{"id": "1", "text": [[{"index": 0, "sentence": text}]]} for text in texts]}
    (tmp_path / "b.json").write_text(json.dumps(big, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr("llm.data.sources.survey.SAMPLED_JSON", 20_000)
    found = diagnose(str(tmp_path / "b.json"))
    assert (found.preset, found.faults) == ("aihub_document_summary", {})
    assert 20 < found.usable < 100


def test_json_lines_named_json_that_are_larger_than_the_sample_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_bytes(lines(*({"text": text} for text in documents(200))))
    monkeypatch.setattr("llm.data.sources.survey.SAMPLED_JSON", 20_000)
    found = diagnose(str(tmp_path / "a.json"))
    assert (found.preset, found.faults) == ("text", {}) and 20 < found.usable <= 100


def test_what_nothing_here_reads_is_said_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("글", encoding="utf-8")
    for name in ("b.xlsx", "c.xlsx", "d.hwp"):
        (tmp_path / name).write_bytes(b"x")
    shown = show(diagnose(str(tmp_path)))
    assert "not read: 2 .xlsx. Save each sheet as csv." in shown
    assert "not read: 1 .hwp. Convert them to txt." in shown
