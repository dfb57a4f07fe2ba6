"""The doctor: what it says of a path, in lines and in JSON, and its exit codes."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from rich.cells import cell_len

from llm.config.compose import data_config, from_hydra
from llm.config.data import CleaningLevel
from llm.config.overrides import readable
from llm.data.corpus import open_corpus
from llm.errors import ConfigError, DataError
from llm.inspect import config_of, diagnose, leaks, main, show
from tests.korean import documents, sentences
from tests.published import dumped, lines, parquet_bytes, write_set, zip_bytes

ROOT = Path(__file__).parents[1]


def test_it_says_what_lies_there_what_fits_and_what_is_wrong(tmp_path: Path) -> None:
    write_set("aihub_books", tmp_path)
    (tmp_path / "깨짐.zip").write_bytes(b"no zip")
    (tmp_path / "표.xlsx").write_bytes(b"x")
    found = diagnose(str(tmp_path))
    shown = show(found)
    assert found.formats == {"json": 2, ".xlsx": 1} and found.files == 3
    assert "preset: aihub_books (fits 100 % of the sampled records" in shown
    assert f"use it: python train.py data=aihub_books data.path={tmp_path}\n" in shown
    assert "yield: 1 of 1 records of the sample" in shown
    assert f"sample {tmp_path}/TL_100.zip!1/책_TEXT_1.json:1: " in shown
    assert "wrong, 1 times: cannot be read" in shown
    assert f"  {tmp_path}/깨짐.zip: cannot be read. Fetch it again, unpack it yourself, or remove it (File is" in shown
    assert "not read: 1 .xlsx. Save each sheet as csv." in shown


# Files that no preset fits, each of 60 documents: name -> content.
DOCUMENTS = documents(60)
TITLES = sentences(60)
NUMBERED = list(enumerate(zip(TITLES, DOCUMENTS, strict=True)))
OWN = {
    "제목과 내용.jsonl": lines(*({"번호": n, "제목": title, "내용": text} for n, (title, text) in NUMBERED)),
    "nested.json": dumped(
        {
            "meta": {"title": "말뭉치", "total": 60},
            "data": [{"id": n, "body": {"제목": title, "본문": text}} for n, (title, text) in NUMBERED],
        }
    ),
    "lines.json": dumped([{"id": n, "문장": [{"n": k, "글": s} for k, s in enumerate(t.split("\n"))]}
                          for n, (_, t) in NUMBERED]),
    "strings.json": dumped({"source": "https://example.com/a/long/address/of/a/corpus", "texts": DOCUMENTS}),
    "기사.csv": "\n".join(["번호,날짜,기사 글", *(f'{n},2024-01-01,"{t}"' for n, (_, t) in NUMBERED)]).encode("cp949"),
    "object.jsonl": lines(*({"data": {"info": {"src": "모두"}, "문서": t}, "id": n} for n, (_, t) in NUMBERED)),
    "list.jsonl": lines(*({"id": str(n) * 40, "문단": t.split("\n")} for n, (_, t) in NUMBERED)),
    "news.parquet": parquet_bytes([{"id": n, "title": title, "본문(전체)": t} for n, (title, t) in NUMBERED]),
}  # fmt: skip
SHARDS = ["stage=shards", "tokenizer.initial_alphabet=none", "tokenizer.vocab_size=600", "tokenizer.allow_lossy=true"]


def of_overrides(words: list[str]) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return from_hydra(compose("config", overrides=list(map(readable, words))))


def pasted(typed: str) -> list[str]:
    """The words that a shell makes of what was printed."""
    said = subprocess.run(f"printf '%s\\0' {typed}", shell=True, executable="/bin/bash", capture_output=True, text=True)
    return said.stdout.split("\0")[:-1]


def read_by(words: list[str]) -> list[str]:
    """The held-out and the training documents that a command for train.py makes shards of."""
    corpus = open_corpus(of_overrides([*words, *SHARDS]).data)
    return [record.text for held_out in (False, True) for record in corpus.records(held_out=held_out)]


def printed(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The command that the doctor gives for a path."""
    main([str(path)])
    [command] = re.findall(r"^use it: (python train\.py .*)$", capsys.readouterr().out, re.MULTILINE)
    return str(command)


@pytest.mark.parametrize("name", OWN)
def test_the_command_that_is_printed_reads_the_longest_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_bytes(OWN[name])
    words = pasted(printed(tmp_path / name, capsys))
    assert words[:2] == ["python", "train.py"]
    assert sorted(read_by(words[2:])) == sorted(DOCUMENTS)


def test_the_command_that_is_printed_runs_in_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "긴 이름.json"
    path.write_bytes(OWN["nested.json"])
    command = printed(path, capsys).replace("python", shlex.quote(sys.executable), 1)
    typed = f"{command} {' '.join(SHARDS)} outputs={tmp_path}/outputs"
    ended = subprocess.run(typed, shell=True, executable="/bin/bash", cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert list((tmp_path / "outputs").glob("shards/*/run.json"))


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("nested.json", "text"),
        ("nested.json", "data"),
        ("기사.csv", "text"),
        ("object.jsonl", "id"),
        ("lines.json", "id"),
    ],
)
def test_the_fixes_of_errors_lead_to_the_text_when_they_are_pasted(tmp_path: Path, name: str, typed: str) -> None:
    (tmp_path / name).write_bytes(OWN[name])
    words = ["data=text", f"data.text_field={typed}", f"data.path={tmp_path / name}"]
    for _ in range(3):
        try:
            texts = read_by(words)
            break
        except DataError as error:
            [fix] = re.findall(r"Set (.*?)(?:\.$|, or )", str(error))
            fixes = pasted(fix)
            set_keys = {each.partition("=")[0] for each in fixes}
            words = [word for word in words if word.partition("=")[0] not in set_keys] + fixes
    assert sorted(texts) == sorted(DOCUMENTS)


def test_a_field_can_be_tried_as_it_is_typed_to_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nested.json"
    path.write_bytes(OWN["nested.json"])
    main([str(path), "data.text_field=body.제목", "--json", "data.layout.records=data[]"])
    found = json.loads(capsys.readouterr().out)
    assert (found["usable"], found["samples"][0]["text"]) == (60, TITLES[0])
    assert found["settings"] == ['data.text_field="body.제목"', 'data.layout.records="data[]"']
    with pytest.raises(SystemExit):
        main([str(path), "data.text_field=id", "data.layout.records=data[]"])
    said = capsys.readouterr()
    assert f"""{path}[0]: id is int, not text. Set 'data.text_field="body.본문"'.""" in said.err
    assert "preset" not in said.out.replace("no preset fits", "")


def test_the_keys_are_shown_with_an_example_on_a_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    (tmp_path / "a.json").write_bytes(OWN["nested.json"])
    main([str(tmp_path / "a.json")])
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [line.split(":")[0].strip() for line in shown] == [
        "meta.title", "meta.total", "data[].id", "data[].body.제목", "data[].body.본문",
    ]  # fmt: skip
    assert shown[:3] == ["  meta.title: 말뭉치", "  meta.total: 60", "  data[].id: 0"]
    assert shown[4].endswith("…") and 55 < cell_len(shown[4]) <= 60
    assert DOCUMENTS[0].replace("\n", " / ").startswith(shown[4].partition(": ")[2].rstrip("…"))


def test_columns_of_talks_are_named_for_a_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*({"n": n, "질의문": title, "대답": text} for n, (title, text) in NUMBERED)))
    main([str(path)])
    [typed] = re.findall(r"base=<run> (data=.*)$", capsys.readouterr().out, re.MULTILINE)
    config = data_config(pasted(typed))
    assert (config.layout.question, config.layout.answer) == ("질의문", "대답")
    assert len(list(open_corpus(config).split_records())) == 60
    with pytest.raises(
        DataError, match=r"""or your own: '\+data.map={question: "질의문", answer: "대답"}'; this one has"""
    ):
        list(open_corpus(data_config(pasted(typed)[:-1])).split_records())


def test_of_a_large_json_file_the_beginning_says_where_its_records_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.data.sample.SAMPLED_PIECES", 1)
    monkeypatch.setattr("llm.data.parse.PIECE", 5000)
    (tmp_path / "a.json").write_bytes(OWN["nested.json"])
    found = diagnose(str(tmp_path / "a.json"))
    assert found.settings == ['data.text_field="body.본문"', 'data.layout.records="data[]"']
    assert 5 < found.usable < 60
    (tmp_path / "a.json").write_bytes(lines(*({"text": text} for text in documents(200))))
    found = diagnose(str(tmp_path / "a.json"))
    assert (found.preset, found.faults) == ("text", {}) and 5 < found.usable < 100


def test_three_documents_are_shown_from_beginning_middle_and_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"글 {n}" for n in range(90)), encoding="utf-8")
    assert [sample["text"] for sample in diagnose(str(tmp_path / "a.txt")).samples] == ["글 0", "글 30", "글 60"]


def test_conversations_are_shown_with_their_roles_and_the_command_that_tunes(tmp_path: Path) -> None:
    write_set("sharegpt", tmp_path)
    found = diagnose(str(tmp_path))
    assert found.samples[0]["text"].startswith("user: ") and "\nassistant: " in found.samples[0]["text"]
    assert "use it: python train.py stage=finetune base=<run> data=sharegpt" in show(found)


def test_of_a_large_archive_a_few_members_are_read(tmp_path: Path) -> None:
    texts = documents(500)
    (tmp_path / "a.zip").write_bytes(zip_bytes({f"{n:03}.txt": text.encode() for n, text in enumerate(texts)}))
    found = diagnose(str(tmp_path / "a.zip"))
    assert found.formats == {"txt": 500}
    assert found.records == found.usable == 16  # each 32nd, of 24 at most
    assert [sample["text"] for sample in found.samples][:2] == [texts[0][:160], texts[5 * 32][:160]]


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
    text = config_of("text", [], str(tmp_path / "a.txt"))
    found = leaks(text, CleaningLevel.off, str(tmp_path / "eval.jsonl"))
    assert found["held-out text"]["documents"] > 0
    measured = found[str(tmp_path / "eval.jsonl")]
    assert (measured["documents"], measured["near_copies"]) == (1, 1)  # the other has no n-gram
    assert measured["worst"][0]["origin"] == f"{tmp_path}/eval.jsonl:1"


def test_json_is_one_object_with_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(documents(300)), encoding="utf-8")
    main([str(tmp_path), "--json", "--clean", "strict", "--leaks"])
    found = json.loads(capsys.readouterr().out)
    assert found["preset"] == "text" and found["records"] == 100
    assert next(iter(found["cleaning"])) == "characters" and found["leaks"]["held-out text"]["documents"] > 0
    main([str(tmp_path), "--leaks"])
    assert "held-out text: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"id": 1}\n', 'a.jsonl:1: field "text" is missing. It has: id. Remove the record'),
        ("a.hwp", b"x", "none of the sampled records can be used. Give files with text."),
        ("a.json", b'{"data": [{"text": "x', "a.json:1: not JSON"),
        ("a.zip", b"x", "a.zip: cannot be read"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_65(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / name)])
    said = capsys.readouterr()
    assert ended.value.code == 65
    assert message in said.err and said.err.count("\n") == 1
    assert "no preset fits" in said.out


def test_a_path_with_nothing_or_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file is there. Give a file, a folder or a quoted glob"):
        diagnose(str(tmp_path))
    (tmp_path / "a.txt").write_text("글", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/b.txt does not exist. Did you mean {tmp_path}/a.txt\?$"):
        diagnose(str(tmp_path / "b.txt"))
    with pytest.raises(ConfigError, match=r"^unknown key data.text_feild. Did you mean data.text_field\?$"):
        diagnose(str(tmp_path), settings=["data.text_feild=x"])
    with pytest.raises(ConfigError, match=r"--data nosuch is no choice that reads files. Choose one of .*text"):
        diagnose(str(tmp_path), name="nosuch")


def test_it_reads_no_more_than_its_sample_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(lines(*({"text": text} for text in documents(200))))
        file.truncate(10**12)  # sparse: all of it would take an hour
    assert diagnose(str(path)).usable == 100


def test_a_table_in_an_archive_is_sampled(tmp_path: Path) -> None:
    write_set("fineweb2_korean", tmp_path)
    (tmp_path / "a.zip").write_bytes(zip_bytes({"안/a.parquet": (tmp_path / "000.parquet").read_bytes()}))
    found = diagnose(str(tmp_path / "a.zip"))
    assert (found.preset, found.usable) == ("fineweb2_korean", 8)
