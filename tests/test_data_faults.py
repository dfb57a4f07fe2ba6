"""A folder of faults: each file gives one line that says where and what, or is counted, and nothing else is lost."""

# ruff: noqa: E501  # a table of cases, one a line

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import re
import resource
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from llm.config.data import BadRecords, DataConfig, DataKind
from llm.config.documents import LayoutConfig
from llm.data.corpus import open_corpus
from llm.data.files import open_files
from llm.data.records import Document, Rejected
from llm.errors import DataError
from tests.patience import PATIENCE
from tests.published import dumped, lines, parquet_bytes, tar_bytes, zip_bytes, zst

GOOD = lines({"text": "첫째 글"}, {"text": "둘째 글"}, {"text": "셋째 글"}, {"text": "넷째 글"})
BAD_LINE = b'{"text": "' + "다섯".encode()[:-1] + b'"}\n'
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A file, what is said of it, and how many documents it still gives."""

    name: str
    data: bytes | Callable[[Path], None]
    says: str  # a regular expression for what follows the folder; "" where nothing is wrong
    kept: int = 0
    faults: int = 1
    settings: dict[str, Any] = field(default_factory=dict)


def cut(data: bytes, share: float = 0.6) -> bytes:
    return data[: int(len(data) * share)]


def noise(size: int) -> list[dict[str, str]]:
    """Records that do not compress well, so that a cut stream has lost some of them."""
    draw = random.Random(0)
    return [{"text": f"{n} {draw.randbytes(24).hex()}"} for n in range(size)]


def patched(data: bytes, local: int, central: int, value: int) -> bytes:
    """A zip of one member with a field of two bytes changed in both of its headers."""
    changed = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = changed.index(mark) + offset
        changed[at : at + 2] = value.to_bytes(2, "little")
    return bytes(changed)


def wrong_checksum(data: bytes) -> bytes:
    changed = bytearray(data)
    at = changed.index(b"PK\x01\x02") + 16
    changed[at : at + 4] = b"\x00\x01\x02\x03"
    return bytes(changed)


def twice_named() -> bytes:
    target = io.BytesIO()
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(target, "w") as archive:
        for text in ("처음", "나중"):
            archive.writestr("글.txt", text)
    return target.getvalue()


def nested(depth: int) -> bytes:
    data = zip_bytes({"글.txt": b"x"})
    for _ in range(depth):
        data = zip_bytes({"안.zip": data})
    return data


def sparse(size: int, start: bytes = b"") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(start)
            file.truncate(size)

    return write


def long_line(path: Path) -> None:
    with path.open("wb") as file:
        file.write(GOOD + b'{"text": "')
        for _ in range(200):
            file.write(b"a" * MIB)
        file.write(b'"}\n' + GOOD)


def loop(path: Path) -> None:
    (path / "안").mkdir(parents=True)
    (path / "글.jsonl").write_bytes(GOOD)
    (path / "안" / "다시").symlink_to(path)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere.jsonl")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def parts(*offsets_and_names: tuple[int, int, str]) -> Callable[[Path], None]:
    """A split archive: (start, end, suffix) of each part, beside `path`."""

    def write(path: Path) -> None:
        path.mkdir()
        data = zip_bytes({"글.jsonl": GOOD})
        for start, end, suffix in offsets_and_names:
            (path / f"x.zip.part{suffix}").write_bytes(data[start:end])

    return write


def tar_with_link() -> bytes:
    import tarfile

    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        link = tarfile.TarInfo("링크.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        info = tarfile.TarInfo("글.jsonl")
        info.size = len(GOOD)
        archive.addfile(info, io.BytesIO(GOOD))
    return target.getvalue()


def arrow_bytes(rows: list[dict[str, Any]]) -> bytes:
    table = pyarrow.Table.from_pylist(rows)
    target = io.BytesIO()
    with pyarrow.ipc.new_stream(target, table.schema) as writer:
        writer.write_table(table)
    return target.getvalue()


def wrong_offset(data: bytes) -> bytes:
    """The second text ends before it begins: an offset of 18 becomes one of 2."""
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 9, 18, 27))
    assert data.count(offsets) == 1
    return data.replace(offsets, offsets.replace(b"\x12", b"\x02"))


ZIP = zip_bytes({"글.jsonl": GOOD})
ZEROS = b"0" * (100 * MIB)
CASES = [
    # archives
    Case("cut.zip", cut(zip_bytes({"글.jsonl": GOOD})), "cut.zip: is damaged or cut. Fetch it again"),
    Case("no.zip", b"this is no zip", r"no.zip: is damaged or cut. .*\(File is not a zip file\)"),
    Case("cut.jsonl.gz", cut(gzip.compress(lines(*noise(3000)))), "cut.jsonl.gz: is damaged or cut", kept=-1),
    Case("no.jsonl.gz", GOOD, r"no.jsonl.gz: is damaged or cut. .*Not a gzipped file"),
    Case("cut.jsonl.zst", cut(zst(GOOD)), r"cut.jsonl.zst: is damaged or cut. .*Truncated compressed stream"),
    Case("no.jsonl.zst", GOOD, "no.jsonl.zst: is damaged or cut"),
    Case("two frames.jsonl.zst", zst(GOOD) * 2, "", kept=8, faults=0),
    Case("cut.tar", cut(tar_bytes({"글.jsonl": lines(*noise(400))})), "cut.tar.*: is damaged or cut", kept=-1, faults=2),
    Case("no.tar", GOOD, "no.tar: is damaged or cut"),
    Case("cut.tar.gz", cut(tar_bytes({"글.jsonl": lines(*noise(3000))}, "w:gz")), "is damaged or cut", kept=-1),
    Case("checksum.zip", wrong_checksum(zip_bytes({"글.jsonl": GOOD})), r"checksum.zip!글.jsonl: is damaged or cut. .*CRC", ),
    Case("slip.zip", zip_bytes({"../밖.txt": b"x", "안.jsonl": GOOD}), r"slip.zip!\.\./밖.txt: has a name that leads out", kept=4),
    Case("absolute.zip", zip_bytes({"/etc/x.txt": b"x", "안.jsonl": GOOD}), "absolute.zip!/etc/x.txt: has a name that leads", kept=4),
    Case("drive.zip", zip_bytes({"C:\\x.txt": b"x", "안.jsonl": GOOD}), r"drive.zip!C:.x.txt: has a name that leads", kept=4),
    Case("slip.tar", tar_bytes({"a/../../밖.txt": b"x", "안.jsonl": GOOD}), r"slip.tar!a/\.\./\.\./밖.txt: has a name", kept=4),
    Case("twice.zip", twice_named, r"twice.zip!글.txt: has the name of an earlier member", kept=1),  # type: ignore[arg-type]
    Case("bomb.zip", zip_bytes({"폭탄.txt": ZEROS}), "bomb.zip: unpacks to more than is plausible. Look at it with care"),
    Case("bomb.jsonl.gz", gzip.compress(ZEROS, 9), "bomb.jsonl.gz: unpacks to more than is plausible"),
    Case("bomb.tar.gz", tar_bytes({"폭탄.txt": ZEROS}, "w:gz"), "bomb.tar.gz.*: unpacks to more than is plausible", faults=2),
    Case("nested.zip", nested(5), "nested.zip!안.zip!안.zip!안.zip: lies in more than 3 archives"),
    Case("deep.zip", nested(1), "", kept=1, faults=0),
    Case("deflate64.zip", patched(zip_bytes({"글.jsonl": GOOD}), 8, 10, 9), "deflate64.zip!글.jsonl: is compressed with Deflate64. .*7z x"),
    Case("method.zip", patched(zip_bytes({"글.jsonl": GOOD}), 8, 10, 97), "method.zip!글.jsonl: is compressed with zip method 97"),
    Case("locked.zip", patched(zip_bytes({"a.jsonl": GOOD}), 6, 8, 1), "locked.zip!a.jsonl: is encrypted. Unpack it with its"),
    Case("이름.zip", zip_bytes({"가나/다라.jsonl": GOOD + BAD_LINE}, cp949=True), r"이름.zip!가나/다라.jsonl:5: not UTF-8 \(byte 0x", kept=4),
    Case("link.tar", tar_with_link(), "link.tar!링크.txt: is a link or a device in a tar", kept=4),
    Case("parts", parts((0, 100, "0"), (100, 999, "100")), "", kept=4, faults=0),
    Case("parts by number", parts((0, 9, "0"), (9, 100, "1"), (100, 999, "2")), "", kept=4, faults=0),
    Case("many parts", parts(*((n, n + 15, str(n)) for n in range(0, len(ZIP), 15))), "", kept=4, faults=0),
    Case("parts missing", parts((0, 60, "0"), (100, 999, "100")), r"x.zip: parts of the split archive are missing. .*byte 60"),
    Case("part.tar", tar_bytes({"안/x.zip.part0": b"x", "글.jsonl": GOOD}), "part.tar!안/x.zip.part0: is a part of a split archive inside", kept=4),
    Case("local.zip", ZIP.replace("글.jsonl".encode(), b"\xff\xfe\xfd.jsonl", 1), "local.zip!글.jsonl: is damaged or cut. .*utf-8"),
    Case("version.zip", patched(ZIP, 4, 6, 227), "version.zip: is damaged or cut. .*zip file version 22.7"),
    # encodings
    Case("bom.jsonl", b"\xef\xbb\xbf" + GOOD + b"{\n", r"bom.jsonl:5: not JSON", kept=4),
    Case("nul.txt", "가\0나\n\n다".encode(), "nul.txt:1: text holds a NUL", kept=1),
    Case("half.jsonl", GOOD + b'{"text": "\\ud83d"}\n', r"half.jsonl:5: text holds half a character", kept=4),
    Case("byte.txt", "첫 글\n\n".encode() + b"\xff\xfe\xfd\n\n" + "셋째 글\n".encode(), r"byte.txt:3: not UTF-8 \(byte 0xff\)", kept=2),
    Case("cp949.txt", "첫 글\n\n둘째 글\n\n".encode("cp949") + b"\xff\n", r"cp949.txt:5: not CP949 \(byte 0xff\)", kept=2),
    Case("utf16.txt", "첫 글\n\n둘째 글\n".encode("utf-16") + b"\x01", r"utf16.txt:4: not UTF-16", kept=1),
    Case("utf16 without mark.csv", "text,쪽\n긴 글 하나,1\n긴 글 둘,2\n".encode("utf-16-le"), "", kept=2, faults=0),
    Case("newlines.txt", "가\r\n나\r\n\r\n다\n\n라\r마\n".encode(), "", kept=3, faults=0),
    # records
    Case("empty.txt", b"", "empty.txt:1: the file is empty"),
    Case("middle.jsonl", GOOD + b'{"text": \n' + GOOD, r"middle.jsonl:5: not JSON. Each line must be one JSON object \(", kept=8),
    Case("long.jsonl", long_line, "long.jsonl:5: longer than 32 MiB. Part it into documents", kept=8),
    Case("long.txt", sparse(200 * MIB, b"a"), "long.txt:1: longer than 32 MiB"),
    Case("types.jsonl", GOOD + b'{"text": 3}\n{"text": ["a"]}\n[1]\n3\n', "types.jsonl:5: text is int, not text", kept=4, faults=4),
    Case("lists.jsonl", GOOD + b'["a"]\n', r'lists.jsonl:5: not a JSON object. Each line must be an object such as .*, not \["a"\]', kept=4),
    Case("missing.jsonl", GOOD + b'{"title": "x"}\n', r'missing.jsonl:5: field "text" is missing. It has: title', kept=4),
    Case("nan.jsonl", GOOD + b'{"text": "nan"}\n{"text": NaN}\n', "nan.jsonl:5: text is nan", kept=4, faults=2),
    Case("digits.jsonl", GOOD + b'{"text": ' + b"9" * 5000 + b"}\n", "digits.jsonl:5: not JSON", kept=4),
    # json
    Case("wrong.json", b'[{"text": "a"},\n{"text": }]', "wrong.json:2: not JSON. The file must be one JSON value"),
    Case("deep.json", b"[" * 200_000, r"deep.json:1: not JSON. .*nested too deeply"),
    Case("bytes.json", b'[{"text": "a"},\n{"text": "caf\xe9"}]', r"bytes.json:2: not UTF-8 \(byte 0xe9\)"),
    Case("big.json", sparse(200 * MIB, b"{"), "big.json: longer than 128 MiB. Say where its records are: data.layout.records"),
    Case("big list.json", sparse(200 * MIB, b'[{"text": "a"}, '), r"big list.json\[1\]: not JSON. The records before it are read", kept=1),
    Case("long record.json", sparse(200 * MIB, b'[{"text": "a"}, "' + b" " * 9), r"long record.json\[1\]: not JSON", kept=1),
    Case("list.json", b'[{"text": "a"}, 3, null, {"body": "b"}]', r"list.json\[1\]: not a JSON object", kept=1, faults=3),
    Case("nothing.json", b"[]", "nothing.json: the list is empty"),
    Case("path.json", b'{"items": []}', r"path.json: data\[\] finds no record. It has: items", settings={"layout": LayoutConfig(records="data[]")}),
    Case("lines.json", GOOD, "", kept=4, faults=0),
    # tables
    Case("quote.csv", 'text\n"열린 글\n다음 글\n'.encode(), r"quote.csv:2: not a csv row. Close the quotes, .*\(unexpected end"),
    Case("columns.csv", "text,쪽\n가나,1\n다,라,2\n마바,3\n".encode(), "columns.csv:3: has 3 columns where the header has 2", kept=2),
    Case("cp949.csv", "text,쪽\n가나,1\n".encode("cp949") + b"\xff,2\n", r"cp949.csv:3: not CP949 \(byte 0xff\)", kept=1),
    Case("sep.csv", 'sep=;\ntext;쪽\n"글; 하나";1\n\n글 둘;2\n'.encode("utf-8-sig"), "", kept=2, faults=0),
    Case("cut.parquet", cut(parquet_bytes([{"text": "가"}])), "cut.parquet: is damaged or cut"),
    Case("no.parquet", GOOD, "no.parquet: is damaged or cut"),
    Case("name.parquet", parquet_bytes([{"text": "가"}]).replace(b"text", b"\xfftxt"), "name.parquet: is damaged or cut. .*utf-8"),
    Case("null.parquet", parquet_bytes([{"text": "가"}, {"text": None}]), r"null.parquet\[1\]: text is NoneType, not text", kept=1),
    Case("columns.parquet", parquet_bytes([{"body": "가"}]), r'columns.parquet\[0\]: field "text" is missing. It has: body'),
    Case("packed.parquet.gz", gzip.compress(parquet_bytes([{"text": "가"}])), "", kept=1, faults=0),
    Case("cut.arrow", cut(arrow_bytes([{"text": "가"}] * 50)), r"cut.arrow.*: is damaged or cut", kept=-1),
    Case("offsets.arrow", wrong_offset(arrow_bytes([{"text": "가나다"}] * 3)), r"offsets.arrow: is damaged or cut. .*[Oo]ffset"),
    Case("bytes.arrow", arrow_bytes([{"text": "가나다"}] * 3).replace("나".encode(), b"\xff\xfe\xfd", 1), r"bytes.arrow\[0\]: not UTF-8 \(byte 0xff\)", kept=2),
    # the file system
    Case("loop", loop, "loop/안/다시: the folder links back to one that was read. Remove the link", kept=4),
    Case("dangling", lambda path: (path.mkdir(), dangling(path / "x.jsonl"))[0], r"x.jsonl: cannot be read \(No such file"),
    Case("pipe", lambda path: (path.mkdir(), pipe(path / "x.jsonl"))[0], "x.jsonl: not a plain file"),
]  # fmt: skip


def write(case: Case, folder: Path) -> Path:
    path = folder / case.name
    data = case.data
    if data is twice_named:
        data = twice_named()
    path.write_bytes(data) if isinstance(data, bytes) else data(path)
    return path


def config(path: Path, case: Case, **settings: Any) -> DataConfig:
    return DataConfig(**({"name": "text", "kind": DataKind.text, "path": str(path)} | case.settings | settings))


@pytest.fixture(autouse=True)
def _no_more_than_a_gigabyte():
    """What a case may add to the memory of this process at its peak."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB


def test_there_are_at_least_forty_faults() -> None:
    assert len(CASES) >= 40 and len({case.name for case in CASES}) == len(CASES)


PACKED = [  # apart from the folder, of which the doctor reads a sample
    Case("cut.jsonl.bz2", cut(bz2.compress(lines(*noise(3000)))), "cut.jsonl.bz2: is damaged or cut", kept=-1),
    Case("no.jsonl.bz2", GOOD, r"no.jsonl.bz2: is damaged or cut. .*Invalid data stream"),
    Case("cut.jsonl.xz", cut(lzma.compress(lines(*noise(3000)))), "cut.jsonl.xz: is damaged or cut", kept=-1),
    Case("bomb.jsonl.bz2", bz2.compress(ZEROS, 9), "bomb.jsonl.bz2: unpacks to more than is plausible"),
    Case("bomb.jsonl.xz", lzma.compress(ZEROS), "bomb.jsonl.xz: unpacks to more than is plausible"),
]


@pytest.mark.parametrize("case", CASES + PACKED, ids=lambda case: case.name)
def test_a_fault_is_one_line_that_says_where(tmp_path: Path, case: Case) -> None:
    path = write(case, tmp_path)
    records = list(open_files(config(path, case)).records())
    faults = [record for record in records if isinstance(record, Rejected)]
    kept = [record for record in records if isinstance(record, Document)]
    assert len(faults) == case.faults
    assert len(kept) == case.kept or case.kept == -1  # -1: how much comes before a cut is up to the compressor
    if not faults:
        return
    with pytest.raises(DataError) as caught:
        list(open_corpus(config(path, case)).records(held_out=False))
    said = str(caught.value)
    assert "\n" not in said
    assert re.search(case.says, said), said
    assert said.startswith(str(path))


@pytest.mark.parametrize("case", [case for case in CASES if case.kept > 0], ids=lambda case: case.name)
def test_a_fault_is_counted_once_and_everything_else_is_kept(tmp_path: Path, case: Case) -> None:
    path = write(case, tmp_path)
    corpus = open_corpus(config(path, case, bad_records=BadRecords.drop, held_out_share=1e-9))
    kept = [record.text for record in corpus.records(held_out=False)]
    assert len(kept) == case.kept
    assert corpus.dropped.total() == case.faults
    again = [record.text for record in corpus.records(held_out=False)]
    assert kept == again


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.jsonl").write_bytes(GOOD)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "a.jsonl" and real(path, mode))  # for root
    case = Case("x", b"", "")
    with pytest.raises(DataError, match=r"a.jsonl: cannot be read \(Permission denied\). Give yourself the right"):
        list(open_corpus(config(tmp_path, case)).records(held_out=False))
    corpus = open_corpus(config(tmp_path, case, bad_records=BadRecords.drop, held_out_share=1e-9))
    assert len(list(corpus.records(held_out=False))) == 4
    assert corpus.dropped == {"cannot be read (Permission denied)": 1}


def test_the_whole_fault_folder_goes_through_the_doctor_without_a_traceback(tmp_path: Path) -> None:
    for case in CASES:
        if (
            "bomb" not in case.name
            and case.name not in ("long.jsonl", "long.txt")
            and "big" not in case.name
            and "long" not in case.name
        ):
            write(case, tmp_path)
    command = [sys.executable, "-m", "llm.inspect", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=Path(__file__).parents[1])
    assert done.returncode == 0 and done.stderr == ""
    found = json.loads(done.stdout)
    assert found["preset"] == "text" and found["usable"] > 20
    assert {"is damaged or cut", "is encrypted", "not JSON"} <= set(found["faults"])


@pytest.mark.parametrize("command", ["train.py stage=tokenizer", "train.py stage=shards", "-m llm.inspect"])
@pytest.mark.parametrize("name", ["slip.zip", "bomb.zip", "dangling"])
def test_a_hostile_or_broken_file_is_one_line_of_every_command(tmp_path: Path, name: str, command: str) -> None:
    (case,) = [case for case in CASES if case.name == name]
    path = write(case, tmp_path)
    words = [*command.split(), str(path)]
    if "train" in command:
        words[-1:] = ["tokenizer.vocab_size=3000", "data=text", f"data.path={path}", f"outputs={tmp_path}/outputs"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 65 or (command, name) == ("-m llm.inspect", "slip.zip")  # it has a good member, too
    assert "Traceback" not in done.stderr
    assert re.search(case.says, done.stderr.splitlines()[-1] if "train" in command else done.stdout)
    assert not list(tmp_path.rglob("밖.txt"))


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zst), ("a.zip", None)])
@pytest.mark.parametrize("size", [2000, 40_000])
def test_what_comes_before_a_cut_is_kept(tmp_path: Path, name: str, pack: Any, size: int) -> None:
    data = lines(*noise(size))
    packed = pack(data) if pack else zip_bytes({"a.jsonl": data})
    middle = len(packed) // 2  # of a zip, which has no directory when it is cut
    packed = cut(packed) if pack else packed[:middle] + b"\xff" * 64 + packed[middle + 64 :]
    (tmp_path / name).write_bytes(packed)
    *kept, last = open_files(config(tmp_path / name, Case(name, b"", ""))).records()
    assert isinstance(last, Rejected) and last.reason == "is damaged or cut"
    expected = [json.loads(line)["text"] for line in data.splitlines()]
    if size > 2000 or name == "a.jsonl.gz":  # a small zst or zip is decompressed in one piece
        assert len(kept) > size // 4
    good = [record.text for record in kept if isinstance(record, Document)]
    if pack:
        assert good[: len(kept) - 1] == expected[: len(good[: len(kept) - 1])]
    else:  # what the damaged bits spell is noticed at the end, by the checksum
        sound = whole_records(packed[:middle]) if size > 2000 else 0
        assert good[:sound] == expected[:sound]
        assert sound or not kept


def whole_records(start_of_zip: bytes) -> int:
    """How many records the beginning of a zip's one member spells to their ends."""
    name_size, extra_size = (int.from_bytes(start_of_zip[at : at + 2], "little") for at in (26, 28))
    deflated = start_of_zip[30 + name_size + extra_size :]
    return zlib.decompressobj(-15).decompress(deflated).count(b"\n")


def test_a_csv_cell_may_hold_lines_and_quotes(tmp_path: Path) -> None:
    target = io.StringIO()
    csv.writer(target).writerows([["쪽", "text"], ["1", '여러 줄\n"따옴표", 쉼표']])
    (tmp_path / "a.csv").write_bytes(target.getvalue().encode("cp949"))
    case = Case("x", b"", "")
    assert list(open_files(config(tmp_path / "a.csv", case)).records()) == [
        Document('여러 줄\n"따옴표", 쉼표', f"{tmp_path}/a.csv:2")
    ]


def test_dumped_is_json() -> None:
    assert json.loads(dumped({"글": "가"})) == {"글": "가"}
