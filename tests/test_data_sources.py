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

from llm.config.data import BadRecords, DataConfig, DataKind
from llm.config.documents import CleaningConfig, FileFormat, LayoutConfig
from llm.data.corpus import open_corpus
from llm.data.decoding import HEAD, detect
from llm.data.files import Files, open_files
from llm.data.places import HIDDEN, OF_SYSTEM
from llm.data.records import Document, Rejected
from llm.data.values import first, values
from llm.errors import ConfigError
from llm.inspect import diagnose
from tests.korean import documents
from tests.published import lines, parquet_bytes, tar_bytes, zip_bytes, zst

TEXTS = documents(30, seed=7)
ENCODINGS = ["utf-8", "utf-8-sig", "cp949", "utf-16", "utf-16-le", "utf-16-be"]


def config(path: Path | str, **settings: Any) -> DataConfig:
    return DataConfig(**({"name": "text", "kind": DataKind.text, "path": str(path)} | settings))


def read(path: Path | str, **settings: Any) -> tuple[list[str], Files]:
    files = open_files(config(path, **settings))
    records = list(files.records())
    assert not [record for record in records if isinstance(record, Rejected) and record.fix]
    return [record.text for record in records if isinstance(record, Document)], files


def left_out(files: Files) -> dict[str, int]:
    return Counter(record.reason for record in files.records() if isinstance(record, Rejected))


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


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_every_encoding_is_found_and_gives_the_same_documents(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(TEXT_FORMATS[name].encode(encoding))
    texts, files = read(tmp_path / name)
    assert texts == TEXTS
    assert files.encodings == {encoding: 1}


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("name", [*TEXT_FORMATS, *TABLES])
def test_every_format_is_read_inside_every_archive(tmp_path: Path, name: str, pack: str) -> None:
    data = TABLES[name] if name in TABLES else TEXT_FORMATS[name].encode()
    path = tmp_path / pack.format(name)
    path.write_bytes(PACKS[pack](name, data))
    texts, files = read(path)
    assert texts == TEXTS
    first_one = next(iter(files.records()))
    inner = {"{}": "", "겹.zip": f"!속.tar!{name}.gz"}.get(pack, "" if "{}" in pack else f"!안/{name}")
    assert first_one.origin.startswith(f"{path}{inner}{'[0]' if name in TABLES or name == '글.json' else ':'}")


@pytest.mark.parametrize("outer", PACKS)
@pytest.mark.parametrize("inner", PACKS)
def test_every_archive_is_read_inside_every_other(tmp_path: Path, inner: str, outer: str) -> None:
    if "겹" in inner + outer:
        return  # has two in it already
    for name in ("글.jsonl", "글.parquet"):  # in lines, and with an index at its end
        data = TABLES[name] if name in TABLES else TEXT_FORMATS[name].encode()
        packed, packed_name = PACKS[inner](name, data), inner.format(name)
        (tmp_path / outer.format(packed_name)).write_bytes(PACKS[outer](packed_name, packed))
        assert read(tmp_path / outer.format(packed_name))[0] == TEXTS


def test_the_lines_of_a_file_larger_than_what_is_read_at_once_are_all_there(tmp_path: Path) -> None:
    texts = [f"{number} {'가나다 ' * 30}" for number in range(6000)]  # several times HEAD
    for encoding in ("utf-8", "cp949", "utf-16"):
        (tmp_path / "a.txt").write_bytes("\n\n".join(texts).encode(encoding))
        assert (tmp_path / "a.txt").stat().st_size > 2 * HEAD
        assert read(tmp_path / "a.txt")[0] == texts


def test_korean_that_comes_after_a_long_stretch_of_ascii_is_still_found_to_be_cp949(tmp_path: Path) -> None:
    texts = ["plain ascii " * 4] * 8000 + ["마침내 우리말이 나온다"]
    (tmp_path / "a.txt").write_bytes("\n\n".join(texts).encode("cp949"))
    found, files = read(tmp_path / "a.txt")
    assert found == texts
    assert files.encodings == {"cp949": 1}


@pytest.mark.parametrize(
    ("data", "at_end", "expected"),
    [
        (b"ascii only", True, None),
        ("한글".encode(), True, "utf-8"),
        ("한글".encode()[:-1], True, "utf-8"),  # one bad line is a bad line, not another encoding
        (("한글 " * 9).encode()[:-3], False, "utf-8"),  # cut within a character, and there is more
        ("한글".encode("cp949"), True, "cp949"),
        (("첫 줄\n" * 5).encode("cp949") + "utf-8 줄\n".encode(), True, "cp949"),
        (("첫 줄\n" * 5).encode() + "cp949 줄\n".encode("cp949"), True, "utf-8"),
        ("café\n".encode("latin-1"), True, "utf-8"),
        ("漢字 日本語".encode("shift-jis"), True, "utf-8"),
        ("漢字 全文".encode("gb18030"), True, "utf-8"),
    ],
)
def test_an_encoding_is_what_most_lines_are_right_in(data: bytes, at_end: bool, expected: str | None) -> None:
    assert detect(data, at_end=at_end) == expected


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
        "files that an operating system left": 1,
        "files that data.layout.skip names": 1,
    }
    assert corpus.notes()["dropped_records"] == expected
    assert "left out 2 files of another suffix (.hwp)" in caplog.text


@pytest.mark.parametrize(
    "hidden", [".ipynb_checkpoints/a-checkpoint.txt", ".git/b.txt", "안/.cache/c.jsonl", ".DS_Store", "안/._a.txt"]
)
@pytest.mark.parametrize("packed", [None, "a.zip", "a.tar.gz"])
def test_what_is_hidden_in_a_folder_or_an_archive_is_no_data_and_counted(
    tmp_path: Path, hidden: str, packed: str | None
) -> None:
    folder = tmp_path / ".cache" / "자료"  # a hidden folder that is named is read
    files = {"a.txt": "가".encode(), "안/b.txt.gz": gzip.compress("나".encode()), hidden: "다".encode()}
    for name, data in {packed: PACKERS[packed](files)}.items() if packed else files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    texts, read_files = read(folder)
    assert texts == ["가", "나"]
    left = OF_SYSTEM if packed and Path(hidden).name[:2] in (".D", "._") else HIDDEN
    assert left_out(read_files) == {left: 1}
    found = diagnose(str(folder))
    assert (found.usable, found.formats) == (2, {"txt": 2, "hidden": 1})


def test_a_hidden_file_that_is_named_is_read(tmp_path: Path) -> None:
    (tmp_path / ".숨은.txt").write_text("가", encoding="utf-8")
    assert read(tmp_path / ".숨은.txt")[0] == ["가"]
    assert read(f"{tmp_path}/.숨*.txt")[0] == ["가"]
    with pytest.raises(ConfigError, match=r"no .txt or .jsonl or .* is there"):
        open_files(config(tmp_path))


def test_names_in_nfd_are_read_and_matched(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "한글_TEXT_1.json")
    (tmp_path / name).write_bytes(G)
    (tmp_path / unicodedata.normalize("NFD", "나머지.json")).write_bytes(H)
    pattern = unicodedata.normalize("NFC", "한글_*.json")
    assert read(tmp_path, layout=LayoutConfig(files=[pattern]))[0] == ["가"]
    assert read(tmp_path / "한글_TEXT_1.json")[0] == ["가"]
    assert read(f"{tmp_path}/한글_*.json")[0] == ["가"]


def test_records_without_what_a_layout_requires_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        lines({"text": "가", "lang": "ko"}, {"text": "나"}, {"text": "다", "lang": "ko"})
    )
    texts, files = read(tmp_path, layout=LayoutConfig(require="lang"))
    assert texts == ["가", "다"]
    assert left_out(files) == {"records without lang (data.layout.require)": 1}


def test_only_the_named_files_are_read(tmp_path: Path) -> None:
    for name in ("가/책_TEXT_1.txt", "나/책_TEXT_2.txt", "나/책_INFO.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert read(tmp_path, layout=LayoutConfig(files=["*_TEXT_*"]))[0] == ["가/책_TEXT_1.txt", "나/책_TEXT_2.txt"]
    assert read(tmp_path, layout=LayoutConfig(files=["나/*"], skip=["*INFO*"]))[0] == ["나/책_TEXT_2.txt"]


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
    records = list(open_files(config(tmp_path, text_field="1", layout=layout)).records())
    assert records == [
        Document("첫 줄 둘째 줄", f"{tmp_path}/a.tsv:1"),
        Document('"따옴표로 끝', f"{tmp_path}/a.tsv:3"),
    ]


def test_a_row_that_is_of_no_group_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("가\t첫 줄\n\t\n", encoding="utf-8")
    layout = LayoutConfig(header=False, group="2")
    faults = [
        r for r in open_files(config(tmp_path, text_field="1", layout=layout)).records() if isinstance(r, Rejected)
    ]
    assert faults[0] == Rejected(f"{tmp_path}/a.tsv:1", 'field "2" is missing', "It has: 0, 1. Set data.layout.group")
    layout = LayoutConfig(header=False, group="0", group_pattern=r"(\d)")
    faults = [
        r for r in open_files(config(tmp_path, text_field="1", layout=layout)).records() if isinstance(r, Rejected)
    ]
    assert faults[0].reason == 'field "0" does not match the group pattern'


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"group": "0", "group_pattern": "("}, r"data.layout.group_pattern=\(: .*Correct it"),
        ({"group_pattern": "(a)"}, r"data.layout.group_pattern=\(a\) needs data.layout.group and one pair of"),
        ({"group": "0", "group_pattern": "a"}, "needs data.layout.group and one pair of"),
        ({"delimiter": "::"}, "data.layout.delimiter=:: is not one character. Set one such as"),
        (
            {"roles": {"human": "person"}},
            r"data.layout.roles=\{.*\} maps to person, which is no role. Map to system, user or assistant",
        ),
        ({"records": "a..b"}, r"data.layout.records=a..b is no path. Write keys as a.b"),
        ({"records": "a[0]"}, r"data.layout.records=a\[0\] is no path"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LayoutConfig(**layout)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.csv", "a.parquet.gz"])
@pytest.mark.parametrize(
    ("columns", "text_field"),
    [
        (["쪽", "a.b"], "a.b"),
        (["쪽", "a.b"], "c|a.b"),
        (["글[]", "쪽"], "글[]"),
        (["text", "제목", "text"], "text"),
        (["제목", "text", "text"], "text.1"),
    ],
)
def test_a_column_is_found_by_a_name_with_signs_in_it_or_that_others_have_too(
    tmp_path: Path, name: str, columns: list[str], text_field: str
) -> None:
    own = columns.index(text_field) if text_field in columns else len(columns) - 1
    cells = [TEXTS if number == own else ["다른 글"] * len(TEXTS) for number in range(len(columns))]
    table = pyarrow.Table.from_arrays([pyarrow.array(column) for column in cells], names=columns)
    target = io.BytesIO()
    if name == "a.arrow":
        with pyarrow.ipc.new_stream(target, table.schema) as writer:
            writer.write_table(table)
    elif name == "a.csv":
        csv.writer(text := io.StringIO()).writerows([columns, *zip(*cells, strict=True)])
        target.write(text.getvalue().encode())
    else:
        pyarrow.parquet.write_table(table, target)
    data = target.getvalue()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read(tmp_path, text_field=text_field)[0] == TEXTS


def test_a_text_field_that_is_no_path_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.text_field=a\[ is no path"):
        config("x", text_field="a[")


def test_a_format_can_be_given_for_files_of_another_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(lines({"text": "가"}))
    with pytest.raises(
        ConfigError, match=r"a.dat is not .txt or .*Convert it, or say what it is with data.layout.format"
    ):
        open_files(config(tmp_path / "a.dat"))
    assert read(tmp_path / "a.dat", layout=LayoutConfig(format=FileFormat.jsonl))[0] == ["가"]


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
    assert read(tmp_path)[0] == TEXTS
    assert read(tmp_path / "train")[0] == TEXTS[4:]


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.pipe("/set/나.jsonl", lines({"text": "둘"}))
    system.pipe("/set/가.zip", zip_bytes({"안.txt": "하나".encode()}))
    system.pipe("/set/README.md", b"x")
    yield system
    system.rm("/set", recursive=True)


def test_a_url_of_any_kind_that_fsspec_knows_is_read(memory: Any) -> None:
    texts, files = read("memory://set")
    assert texts == ["하나", "둘"]
    assert left_out(files) == {"files of another suffix (.md)": 1}
    assert read("memory://set/*.jsonl")[0] == ["둘"]
    assert read("memory://set/가.zip")[0] == ["하나"]
    assert next(iter(open_files(config("memory://set/가.zip")).records())).origin == "memory:///set/가.zip!안.txt:1"
    assert open_files(config("memory://set")).digest() == open_files(config("memory://set/")).digest()


def test_what_a_protocol_raises_while_it_is_read_is_a_fault(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no range requests\nhere")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.seek", fail)
    (fault,) = open_files(config("memory://set/가.zip")).records()
    assert isinstance(fault, Rejected)
    assert (fault.origin, fault.reason) == ("memory:///set/가.zip", "cannot be read from its URL")
    assert "no range requests" in fault.fix and "\n" not in fault.fix


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
        open_files(config(url))
    assert "\n" not in str(caught.value)


def test_the_digest_knows_the_format_and_every_part_of_a_split_archive(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b'{"text": "x"}')
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}')
    digests = {open_files(config(tmp_path / name)).digest() for name in ("a.txt", "a.jsonl")}
    data = zip_bytes({"글.txt": "글".encode()})
    (tmp_path / "whole.zip").write_bytes(data)
    parts = tmp_path / "parts"
    parts.mkdir()
    for start in range(0, len(data), 50):
        (parts / f"x.zip.part{start}").write_bytes(data[start : start + 50])
    digests |= {open_files(config(parts)).digest()}
    assert len(digests) == 3
    assert open_files(config(parts)).digest() == open_files(config(tmp_path / "whole.zip")).digest()


def test_two_passes_give_identical_records(tmp_path: Path) -> None:
    for name, text in TEXT_FORMATS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name, data in TABLES.items():
        (tmp_path / name).write_bytes(data)
    settings = {"bad_records": BadRecords.drop, "cleaning": CleaningConfig(exact_duplicates=True)}
    passes = []
    for _ in range(2):
        corpus = open_corpus(config(tmp_path, held_out_share=0.5, **settings))
        passes.append([(r.text, r.origin) for side in (False, True) for r in corpus.records(held_out=side)])
        assert corpus.dropped.total() + len(passes[-1]) == 8 * len(TEXTS)
    assert passes[0] == passes[1]
    assert len(passes[0]) == len(set(TEXTS))


@pytest.mark.parametrize("name", ["책.txt", "한글 이름.txt", "정말긴이름_TEXT_1.txt", "café.txt", "日本.txt"])
def test_a_name_in_a_zip_is_repaired_from_what_korean_windows_wrote(tmp_path: Path, name: str) -> None:
    korean = name not in ("café.txt", "日本.txt")
    (tmp_path / "a.zip").write_bytes(zip_bytes({name: b"x"}, cp949=korean))
    (record,) = open_files(config(tmp_path / "a.zip")).records()
    assert record.origin == f"{tmp_path}/a.zip!{name}:1"
    assert diagnose(str(tmp_path / "a.zip")).repaired_names == [f"{tmp_path}/a.zip!{name}"] * korean


# One JSON value, or one on each line

G, H = b'{"text": "\xea\xb0\x80"}', b'{"text": "\xeb\x82\x98"}'  # 가 and 나
JSON_FILES: dict[str, tuple[bytes, str | None, list[str]]] = {  # the bytes, layout.records, what is read
    "one object": (G, None, [":1 가"]),
    "one object whose records lie inside": (b'{"data": [' + G + b"," + H + b"]}\n", "data[]", ["[0] 가", "[1] 나"]),
    "lines under a layout of one value": (G + b"\n" + H, "data[]", [":1 가", ":2 나"]),
    "a list on one line": (b"[" + G + b"," + H + b"]\n", None, ["[0] 가", "[1] 나"]),
    "a list of strings on one line": (b'["\xea\xb0\x80", "\xeb\x82\x98"]', None, ["[0] 가", "[1] 나"]),
    "a first line that is broken": (G[:-1] + b"\n" + H + b"\n" + H, None, [":1 not JSON", ":2 나", ":3 나"]),
    "a first line with a bad byte": (b'{"text": "\xff"}\n' + G, None, [":1 not UTF-8 (byte 0xff)", ":2 가"]),
    "a broken line alone": (G[:-1] + b"\n", None, [":2 not JSON"]),
    "an object on the second line of one value": (b'{"data":\n' + G + b"\n}", "data", ["[0] 가"]),
    "commas before the items": (b"[\n" + G + b"\n," + H + b"\n]", None, ["[0] 가", "[1] 나"]),
    "blank": (b" \n\n", None, []),
}


@pytest.mark.parametrize("whole", [2**25, 12], ids=["read whole", "read in pieces"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("case", JSON_FILES)
def test_what_is_parsed_decides_whether_a_file_is_one_value_or_has_one_on_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, suffix: str, whole: int
) -> None:
    data, records, expected = JSON_FILES[case]
    (tmp_path / f"a{suffix}").write_bytes(data)
    monkeypatch.setattr("llm.data.parse.WHOLE_JSON", whole)
    found = open_files(config(tmp_path, layout=LayoutConfig(records=records))).records()
    place = f"{tmp_path}/a{suffix}"
    shown = [r.origin.removeprefix(place) + " " + getattr(r, "text", getattr(r, "reason", "")) for r in found]
    assert shown == expected


@pytest.mark.parametrize("others", [b"", G, G + b"\n" + H])
def test_a_first_line_that_is_too_long_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bytes
) -> None:
    (tmp_path / "a.json").write_bytes(b'{"text": "' + b"a" * 500 + b'"}\n' + others)
    for name, value in {
        "parse.WHOLE_JSON": 100,
        "parse.MAX_JSON": 300,
        "parse.MAX_LINE": 100,
        "decoding.MAX_LINE": 100,
    }.items():
        monkeypatch.setattr(f"llm.data.{name}", value)
    first, *kept = open_files(config(tmp_path)).records()
    assert isinstance(first, Rejected) and first.reason == "longer than 0 MiB"
    assert ("Part it into documents" if others else "Say where its records are") in first.fix
    assert [record.text for record in kept if isinstance(record, Document)] == ["가", "나"][: len(others.splitlines())]


def test_one_value_in_a_stream_with_a_wrong_checksum_is_kept_and_the_damage_said(tmp_path: Path) -> None:
    packed = gzip.compress(G + b"\n")
    (tmp_path / "a.json.gz").write_bytes(packed[:-8] + b"\x00\x01\x02\x03" + packed[-4:])
    record, fault = open_files(config(tmp_path)).records()
    assert isinstance(record, Document) and record.text == "가"
    assert isinstance(fault, Rejected) and fault.reason == "is damaged or cut"


# A json file that is too large to be read whole


LARGE: dict[str, tuple[Any, str | None]] = {
    "list": ([{"text": text} for text in TEXTS], None),
    "path": ({"info": 1, "data": [{"text": text} for text in TEXTS]}, "data[]"),
    "nested": ({"data": [{"p": [{"text": TEXTS[n]}, {"text": TEXTS[n + 1]}]} for n in range(0, 30, 2)]}, "data[].p[]"),
    "strings": (TEXTS, None),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("settings", [{}, {"ensure_ascii": False}, {"ensure_ascii": False, "indent": 1}], ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_read_in_pieces_it_gives_what_it_gives_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any], encoding: str
) -> None:
    value, records = LARGE[name]
    (tmp_path / "a.json").write_bytes(json.dumps(value, **settings).encode(encoding))
    files = open_files(config(tmp_path, layout=LayoutConfig(records=records)))
    whole = list(files.records())
    monkeypatch.setattr("llm.data.parse.WHOLE_JSON", 300)
    monkeypatch.setattr("llm.data.large_json.BUFFER", 64)
    assert list(files.records()) == whole == [Document(text, f"{tmp_path}/a.json[{n}]") for n, text in enumerate(TEXTS)]


@pytest.mark.parametrize(
    ("rest", "reason", "fix"),
    [
        ('{"text": }]', "not JSON", r"The records before it are read; .*Expecting value"),
        ('{"text": "\\ud83d"}]', "text holds half a character (a lone surrogate)", "Repair it"),
        ('{"text": "\\ude00\\ud83d"}]', "text holds half a character (a lone surrogate)", "Repair it"),
        ('{"text": "' + "가" * 12_000 + '"}]', "longer than 0 MiB", "Say where the records are"),
        ('{"text": "', "not JSON", "Unterminated string"),
    ],
)
def test_read_in_pieces_what_is_before_a_fault_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: str, reason: str, fix: str
) -> None:
    import re

    monkeypatch.setattr("llm.data.parse.WHOLE_JSON", 300)
    monkeypatch.setattr("llm.data.large_json.BUFFER", 64)
    monkeypatch.setattr("llm.data.large_json.MAX_RECORD", 5000)
    good = json.dumps([{"text": text} for text in TEXTS], ensure_ascii=False)[:-1]
    (tmp_path / "a.json").write_text(f"{good}, {rest}", encoding="utf-8")
    *kept, fault = open_files(config(tmp_path)).records()
    assert [record.text for record in kept if isinstance(record, Document)] == TEXTS
    assert isinstance(fault, Rejected)
    assert (fault.origin, fault.reason) == (f"{tmp_path}/a.json[30]", reason)
    assert re.search(fix, fault.fix)


def test_read_in_pieces_whole_characters_and_backslashes_are_no_half_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{'x' * n}😀 \\ud83d \\\\ 끝" for n in range(40)]  # at every place of the buffer
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts]), encoding="utf-8")
    monkeypatch.setattr("llm.data.parse.WHOLE_JSON", 10)
    monkeypatch.setattr("llm.data.large_json.BUFFER", 32)
    assert read(tmp_path)[0] == texts


def test_read_in_pieces_a_path_that_finds_nothing_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": {"text": "가" * 100}}), encoding="utf-8")
    monkeypatch.setattr("llm.data.parse.WHOLE_JSON", 10)
    (fault,) = open_files(config(tmp_path, layout=LayoutConfig(records="items[]"))).records()
    assert isinstance(fault, Rejected) and (fault.origin, fault.reason) == (
        f"{tmp_path}/a.json",
        "items[] finds no record",
    )
