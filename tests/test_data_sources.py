"""Sources: every format, plain and packed, in every encoding, gives the same documents; what is left out is counted."""

import bz2
import csv
import gzip
import io
import json
import lzma
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from llm.config.data import DataConfig, DataKind, FileFormat, LayoutConfig
from llm.data.archives import HIDDEN
from llm.data.corpus import open_corpus
from llm.data.files import digest_of_files, find_files, read_files
from llm.data.parse import PIECE, detect
from llm.data.records import Document, Record, Rejected, first, values
from llm.errors import ConfigError
from llm.inspect import diagnose
from tests.korean import documents
from tests.published import lines, parquet_bytes, tar_bytes, zip_bytes, zst

TEXTS = documents(30, seed=7)


def config(path: Path | str, **settings: Any) -> DataConfig:
    return DataConfig(**({"name": "text", "kind": DataKind.text, "path": str(path)} | settings))


def records_of(path: Path | str, encodings: Counter[str] | None = None, **settings: Any) -> list[Record]:
    wanted = config(path, **settings)
    return list(read_files(find_files(wanted), wanted, encodings))


def read(path: Path | str, encodings: Counter[str] | None = None, **settings: Any) -> list[str]:
    records = records_of(path, encodings, **settings)
    assert not [record for record in records if isinstance(record, Rejected) and record.fix]
    return [record.text for record in records if isinstance(record, Document)]


def left_out(path: Path | str, **settings: Any) -> dict[str, int]:
    return Counter(record.reason for record in records_of(path, **settings) if isinstance(record, Rejected))


def digest(path: Path | str) -> str:
    return digest_of_files(find_files(config(path)), config(path))


def table(delimiter: str) -> str:
    target = io.StringIO()
    rows = [["쪽", "text"], *([str(number), text] for number, text in enumerate(TEXTS))]
    csv.writer(target, delimiter=delimiter).writerows(rows)
    return target.getvalue()


def arrow_bytes(texts: list[str]) -> bytes:
    made = pyarrow.table({"text": texts})
    target = io.BytesIO()
    with pyarrow.ipc.new_stream(target, made.schema) as writer:
        writer.write_table(made, max_chunksize=7)
    return target.getvalue()


TEXT_FORMATS: dict[str, str] = {
    "글.txt": "\n\n".join(TEXTS),
    "글.jsonl": "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS),
    "글.json": json.dumps([{"text": text} for text in TEXTS], ensure_ascii=False, indent=1),
    "글.csv": table(","),
    "excel.csv": table(";"),
    "글.tsv": table("\t"),
}
TABLES = {"글.parquet": parquet_bytes([{"n": 1, "text": text} for text in TEXTS]), "글.arrow": arrow_bytes(TEXTS)}
PACKERS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "a.zip": zip_bytes,
    "a.tar.gz": lambda files: tar_bytes(files, "w:gz"),
}
PACKS: dict[str, Callable[[str, bytes], bytes]] = {
    "{}": lambda _, data: data,
    "{}.gz": lambda _, data: gzip.compress(data),
    "{}.bz2": lambda _, data: bz2.compress(data),
    "{}.xz": lambda _, data: lzma.compress(data),
    "{}.zst": lambda _, data: zst(data),
    "a.zip": lambda name, data: zip_bytes({f"안/{name}": data}, cp949=not data.startswith(b"PK")),
    "a.tar": lambda name, data: tar_bytes({f"안/{name}": data}),
    "a.tar.gz": lambda name, data: tar_bytes({f"안/{name}": data}, "w:gz"),
    "a.tar.bz2": lambda name, data: tar_bytes({f"안/{name}": data}, "w:bz2"),
    "a.tgz": lambda name, data: tar_bytes({f"안/{name}": data}, "w:gz"),
    "a.tar.zst": lambda name, data: zst(tar_bytes({f"안/{name}": data})),
    "겹.zip": lambda name, data: zip_bytes({"속.tar": tar_bytes({f"{name}.gz": gzip.compress(data)})}),
}


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_every_encoding_is_found_and_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    for encoding in ("utf-8", "utf-8-sig", "cp949", "utf-16"):
        (tmp_path / name).write_bytes(TEXT_FORMATS[name].encode(encoding))
        encodings: Counter[str] = Counter()
        assert read(tmp_path / name, encodings) == TEXTS
        assert encodings == {encoding: 1}


def data_of(name: str) -> bytes:
    return TABLES[name] if name in TABLES else TEXT_FORMATS[name].encode()


@pytest.mark.parametrize("pack", PACKS)
def test_every_format_is_read_inside_every_archive(tmp_path: Path, pack: str) -> None:
    for name in ("글.jsonl", "글.json", *TABLES):
        path = tmp_path / pack.format(name)
        path.write_bytes(PACKS[pack](name, data_of(name)))
        assert read(path) == TEXTS
        inner = {"{}": "", "겹.zip": f"!속.tar!{name}.gz"}.get(pack, "" if "{}" in pack else f"!안/{name}")
        assert records_of(path)[0].origin.startswith(f"{path}{inner}{':' if name == '글.jsonl' else '[0]'}")


@pytest.mark.parametrize("outer", ["{}.gz", "a.zip", "a.tar.gz", "a.tar.zst"])
def test_an_archive_is_read_inside_another(tmp_path: Path, outer: str) -> None:
    for inner in ("{}.xz", "a.zip", "a.tar", "a.tgz"):
        for name in ("글.jsonl", "글.parquet"):  # in lines, and with an index at its end
            packed, packed_name = PACKS[inner](name, data_of(name)), inner.format(name)
            (tmp_path / outer.format(packed_name)).write_bytes(PACKS[outer](packed_name, packed))
            assert read(tmp_path / outer.format(packed_name)) == TEXTS


@pytest.mark.parametrize("encoding", ["utf-8", "cp949", "utf-16"])
def test_nothing_is_lost_between_the_pieces_in_which_a_file_is_read(tmp_path: Path, encoding: str) -> None:
    texts = ["plain ascii " * 4] * 2000 + [f"{number} {'가나다 ' * (number % 40)}끝" for number in range(3000)]
    (tmp_path / "a.txt").write_bytes("\r\n\r\n".join(texts).encode(encoding))
    assert (tmp_path / "a.txt").stat().st_size > 3 * PIECE
    encodings: Counter[str] = Counter()
    assert read(tmp_path / "a.txt", encodings) == texts
    assert encodings == {encoding: 1}  # though the first piece is all ASCII


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("한글".encode()[:-1], "utf-8"),  # one bad line is a bad line, not another encoding
        ("한글".encode("cp949"), "cp949"),
        (("첫 줄\n" * 5).encode("cp949") + "utf-8 줄\n".encode(), "cp949"),
        (("첫 줄\n" * 5).encode() + "cp949 줄\n".encode("cp949"), "utf-8"),
        ("“café”\n".encode("cp1252"), "utf-8"),
        ("漢字 日本語".encode("shift-jis"), "utf-8"),
    ],
)
def test_an_encoding_is_what_most_bytes_are_right_in(data: bytes, expected: str) -> None:
    assert detect(data) == expected


# What is left out is counted


def test_files_that_are_not_read_are_counted_by_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {"a.txt": b"x", "b.hwp": b"x", "c.HWP": b"x", "LICENSE": b"x", "__MACOSX/._a.txt": b"x", "d_INFO.txt": b"x"}
    (tmp_path / "a.zip").write_bytes(zip_bytes(files))
    (tmp_path / "b.pdf").write_bytes(b"x")
    settings = {"layout": LayoutConfig(skip=["*_INFO.txt"]), "held_out_share": 1e-9}
    corpus = open_corpus(config(tmp_path, **settings))
    assert [record.text for record in corpus.records(held_out=False)] == ["x"]
    expected = {
        "files of another suffix (.hwp)": 2,
        "files of another suffix (none)": 1,
        "files of another suffix (.pdf)": 1,
        HIDDEN: 1,
        "files that data.layout.skip names": 1,
    }
    assert corpus.notes()["dropped_records"] == expected
    assert "left out 2 files of another suffix (.hwp)" in caplog.text


@pytest.mark.parametrize("packed", [None, "a.zip", "a.tar.gz"])
def test_what_is_hidden_in_a_folder_or_an_archive_is_no_data_and_counted(tmp_path: Path, packed: str | None) -> None:
    folder = tmp_path / ".cache" / "자료"  # a hidden folder that is named is read
    hidden = [".ipynb_checkpoints/a-checkpoint.txt", ".git/b.txt", "안/.cache/c.jsonl", ".DS_Store", "안/._a.txt"]
    files = {"a.txt": "가".encode(), "안/b.txt.gz": gzip.compress("나".encode()), **dict.fromkeys(hidden, b"x")}
    for name, data in {packed: PACKERS[packed](files)}.items() if packed else files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert read(folder) == ["가", "나"]
    assert left_out(folder) == {HIDDEN: 5}
    found = diagnose(str(folder))
    assert (found.usable, found.formats) == (2, {"hidden": 5, "txt": 2})
    (folder / ".숨은.txt").write_text("다", encoding="utf-8")
    assert read(folder / ".숨은.txt") == ["다"]


def test_names_in_nfd_are_read_and_matched(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "한글_TEXT_1.json")
    (tmp_path / name).write_bytes(G)
    (tmp_path / unicodedata.normalize("NFD", "나머지.json")).write_bytes(H)
    pattern = unicodedata.normalize("NFC", "한글_*.json")
    assert read(tmp_path, layout=LayoutConfig(files=[pattern])) == ["가"]
    assert read(tmp_path / "한글_TEXT_1.json") == ["가"]
    assert read(f"{tmp_path}/한글_*.json") == ["가"]


def test_records_without_what_a_layout_requires_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        lines({"text": "가", "lang": "ko"}, {"text": "나"}, {"text": "다", "lang": "ko"})
    )
    layout = LayoutConfig(require="lang")
    assert read(tmp_path, layout=layout) == ["가", "다"]
    assert left_out(tmp_path, layout=layout) == {"records without lang (data.layout.require)": 1}


# Layouts


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a", [1]),
        ("b.c", ["x"]),
        ("d[].e", ["y", "z"]),
        ("d[].f[]", [1, 2, 3]),
        ("g[][].h", ["p", "q"]),
        ("one[].e", ["object"]),  # an object where others have a list
        ("missing", []),
        ("b.missing", []),
        ("missing|b.c", ["x"]),
        ("empty|b.c", ["x"]),
        ("empty", [""]),
        ("empty|missing", [""]),
        ("dotted.key", ["as it stands"]),
        ("a.b", []),
        ("nothing|a", [1]),
    ],
)
def test_a_path_finds_values(path: str, expected: list[Any]) -> None:
    record = {
        "a": 1,
        "b": {"c": "x"},
        "d": [{"e": "y", "f": [1]}, {"e": "z", "f": [2, 3]}, {}],
        "g": [[{"h": "p"}], [{"h": "q"}]],
        "one": {"e": "object"},
        "empty": "",
        "nothing": None,
        "dotted.key": "as it stands",
    }
    assert values(record, path) == expected
    assert first(record, path) == (expected[0] if expected else None)


def test_rows_of_one_group_are_one_document(tmp_path: Path) -> None:
    rows = ["가.1.1\t첫 줄", "가.1.2\t둘째 줄", '가.2.1\t"따옴표로', "나.2.9\t끝"]
    (tmp_path / "a.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    layout = LayoutConfig(header=False, group="0", group_pattern=r"^[^.]*\.(\d+)", join=" ")
    assert records_of(tmp_path, text_field="1", layout=layout) == [
        Document("첫 줄 둘째 줄", f"{tmp_path}/a.tsv:1"),
        Document('"따옴표로 끝', f"{tmp_path}/a.tsv:3"),
    ]
    (tmp_path / "a.tsv").write_text("가\t첫 줄\n\t\n", encoding="utf-8")  # rows that are of no group
    fault, _ = records_of(tmp_path, text_field="1", layout=LayoutConfig(header=False, group="2"))
    assert fault == Rejected(f"{tmp_path}/a.tsv:1", 'field "2" is missing', "It has: 0, 1. Set data.layout.group")
    layout = LayoutConfig(header=False, group="0", group_pattern=r"(\d)")
    fault, _ = records_of(tmp_path, text_field="1", layout=layout)
    assert isinstance(fault, Rejected) and fault.reason == 'field "0" does not match the group pattern'


@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
@pytest.mark.parametrize(
    ("columns", "text_field"),
    [(["쪽", "a.b"], "a.b"), (["쪽", "a.b"], "c|a.b"), (["글[]", "쪽"], "글[]"), (["제목", "text", "text"], "text.1")],
)
def test_a_column_is_found_by_a_name_with_signs_in_it_or_that_others_have_too(
    tmp_path: Path, name: str, columns: list[str], text_field: str
) -> None:
    own = columns.index(text_field) if text_field in columns else len(columns) - 1
    cells = [TEXTS if number == own else ["다른 글"] * len(TEXTS) for number in range(len(columns))]
    if name == "a.csv":
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *zip(*cells, strict=True)])
    else:
        arrays = [pyarrow.array(column) for column in cells]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names=columns), tmp_path / name)
    assert read(tmp_path, text_field=text_field) == TEXTS


@pytest.mark.parametrize("names", [["part0", "part50", "part100"], ["part1", "part2", "part10"]])
def test_the_parts_of_a_split_archive_are_one_file(tmp_path: Path, names: list[str]) -> None:
    data = zip_bytes({"글.txt": "글".encode()})
    (tmp_path / "parts").mkdir()
    for name, start, end in zip(names, (0, 50, 100), (50, 100, None), strict=True):
        (tmp_path / "parts" / f"x.zip.{name}").write_bytes(data[start:end])
    (tmp_path / "whole.zip").write_bytes(data)
    assert read(tmp_path / "parts") == ["글"]
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole.zip")


def test_a_folder_that_a_link_leads_back_to_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "자료" / "안").mkdir(parents=True)
    (tmp_path / "자료" / "글.txt").write_text("가", encoding="utf-8")
    (tmp_path / "자료" / "안" / "다시").symlink_to(tmp_path / "자료")
    (tmp_path / "다른").symlink_to(tmp_path / "자료")
    assert read(tmp_path / "다른") == ["가"] and left_out(tmp_path / "다른") == {
        "folders that link to one that was read": 1
    }


def test_a_text_field_that_is_no_path_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.text_field=a\[ is no path"):
        config("x", text_field="a[")


def test_a_format_can_be_given_for_files_of_another_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(lines({"text": "가"}))
    with pytest.raises(
        ConfigError, match=r"a.dat is not .txt or .*Convert it, or say what it is with data.layout.format"
    ):
        read(tmp_path / "a.dat")
    assert read(tmp_path / "a.dat", layout=LayoutConfig(format=FileFormat.jsonl)) == ["가"]


# Places


def test_a_folder_that_datasets_saved_gives_its_data_files_only(tmp_path: Path) -> None:
    """As Dataset.save_to_disk of datasets 5.2 lays it out; a cache that it left there is no data."""
    for split, texts in (("test", TEXTS[:4]), ("train", TEXTS[4:])):
        folder = tmp_path / split
        folder.mkdir()
        names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
        for name, part in zip(names, (texts[:3], texts[3:]), strict=True):
            (folder / name).write_bytes(arrow_bytes(part))
        (folder / "cache-1234.arrow").write_bytes(arrow_bytes(["지난 결과"]))
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert read(tmp_path) == TEXTS
    assert read(tmp_path / "train") == TEXTS[4:]


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.pipe("/set/나.jsonl", lines({"text": "둘"}))
    system.pipe("/set/가.zip", zip_bytes({"안.txt": "하나".encode()}))
    system.pipe("/set/README.md", b"x")
    yield system
    system.rm("/set", recursive=True)


def test_a_url_of_any_kind_that_fsspec_knows_is_read(memory: Any) -> None:
    assert read("memory://set") == ["하나", "둘"]
    assert left_out("memory://set") == {"files of another suffix (.md)": 1}
    assert read("memory://set/*.jsonl") == ["둘"]
    assert read("memory://set/가.zip") == ["하나"]
    assert records_of("memory://set/가.zip")[0].origin == "memory:///set/가.zip!안.txt:1"
    assert digest("memory://set") == digest("memory://set/")


def test_what_a_protocol_raises_while_it_is_read_is_a_fault(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no range requests\nhere")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.seek", fail)
    (fault,) = records_of("memory://set/가.zip")
    assert str(fault) == (
        "memory:///set/가.zip: cannot be read. Fetch it again, unpack it yourself, or remove it (no range requests)."
    )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "memory://nowhere/a.txt",
            "data.path=memory://nowhere/a.txt: cannot be listed .*Check the URL and your",
        ),
        ("nosuch://x/a.txt", "data.path=nosuch://x/a.txt: cannot be listed .*Protocol not known: nosuch"),
        ("memory://nowhere/*.txt", "no .txt or .* is there"),
    ],
)
def test_a_url_without_files_is_one_line(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["책.txt", "한글 이름.txt", "정말긴이름_TEXT_1.txt", "café.txt", "日本.txt"])
def test_a_name_in_a_zip_is_repaired_from_what_korean_windows_wrote(tmp_path: Path, name: str) -> None:
    korean = name not in ("café.txt", "日本.txt")
    (tmp_path / "a.zip").write_bytes(zip_bytes({name: b"x"}, cp949=korean))
    (record,) = records_of(tmp_path / "a.zip")
    assert record.origin == f"{tmp_path}/a.zip!{name}:1"


# One JSON value, or one on each line

G, H = b'{"text": "\xea\xb0\x80"}', b'{"text": "\xeb\x82\x98"}'  # 가 and 나
JSON_FILES: dict[str, tuple[bytes, str | None, list[str]]] = {  # the bytes, layout.records, what is read
    "one object": (G, None, [":1 가"]),
    "one object whose records lie inside": (b'{"data": [' + G + b"," + H + b"]}\n", "data[]", ["[0] 가", "[1] 나"]),
    "lines under a layout of one value": (G + b"\n" + H, "data[]", [":1 가", ":2 나"]),
    "a list on one line": (b"[" + G + b"," + H + b"]\n", None, ["[0] 가", "[1] 나"]),
    "a list of strings on one line": (b'["\xea\xb0\x80", "\xeb\x82\x98"]', None, ["[0] 가", "[1] 나"]),
    "a first line that is broken": (G[:-1] + b"\n" + H + b"\n" + H, None, [":1 not JSON", ":2 나", ":3 나"]),
    "strings on lines": (b'"\xea\xb0\x80"\n"\xeb\x82\x98"', None, [":1 가", ":2 나"]),
    "a broken line alone": (G[:-1] + b"\n", None, [":1 not JSON"]),
    "commas before the items": (b"[\n" + G + b"\n," + H + b"\n]", None, ["[0] 가", "[1] 나"]),
    "blank": (b" \n\n", None, []),
}


@pytest.mark.parametrize("case", JSON_FILES)
def test_what_is_parsed_decides_whether_a_file_is_one_value_or_has_one_on_each_line(tmp_path: Path, case: str) -> None:
    data, records, expected = JSON_FILES[case]
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_bytes(data)
        found = records_of(tmp_path / name, layout=LayoutConfig(records=records))
        shown = [(r.origin.removeprefix(f"{tmp_path}/{name}"), getattr(r, "reason", None) or r.text) for r in found]
        assert [" ".join(map(str, each)) for each in shown] == expected


# A json file that is too large to be read whole


LARGE: dict[str, tuple[Any, str | None]] = {
    "list": ([{"text": text} for text in TEXTS], None),
    "path": ({"info": 1, "data": [{"text": text} for text in TEXTS]}, "data[]"),
    "nested": ({"data": [{"p": [{"text": TEXTS[n]}, {"text": TEXTS[n + 1]}]} for n in range(0, 30, 2)]}, "data[].p[]"),
    "strings": (TEXTS, None),
}


@pytest.mark.parametrize("settings", [{"ensure_ascii": False}, {"indent": 1}], ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_read_in_pieces_it_gives_what_it_gives_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]
) -> None:
    value, records = LARGE[name]
    (tmp_path / "a.json").write_bytes(json.dumps(value, **settings).encode("utf-16"))
    layout = LayoutConfig(records=records)
    whole = records_of(tmp_path, layout=layout)
    monkeypatch.setattr("llm.data.parse.MAX_LINE", 300)
    monkeypatch.setattr("llm.data.parse.PIECE", 64)
    assert (
        records_of(tmp_path, layout=layout)
        == whole
        == [Document(text, f"{tmp_path}/a.json[{n}]") for n, text in enumerate(TEXTS)]
    )


def test_read_in_pieces_what_is_before_a_fault_is_kept_and_a_path_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.data.parse.MAX_LINE", 300)
    good = json.dumps([{"text": text} for text in TEXTS], ensure_ascii=False)[:-1]
    (tmp_path / "a.json").write_text(good + ', {"text": }]', encoding="utf-8")
    *kept, fault = records_of(tmp_path)
    assert [record.text for record in kept if isinstance(record, Document)] == TEXTS
    assert str(fault).startswith(f"{tmp_path}/a.json[30]: not JSON. The records before it are read; repair it (")
    (tmp_path / "a.json").write_text('{"data": ' + good + "]}", encoding="utf-8")
    (fault,) = records_of(tmp_path)
    assert "longer than 0 MiB. Say where its records are: data.layout.records, such as data[]" in str(fault)
