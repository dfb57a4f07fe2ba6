"""Files of the user: what becomes a document or a conversation, what is wrong with the rest, and how it is split."""

import gzip
import io
import json
import os
import re
import resource
import subprocess
import sys
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.config.data import BadRecords, DataConfig, DataKind, LayoutConfig
from llm.data.corpus import Corpus, is_held_out, open_corpus, place_of
from llm.data.files import find_files, read_files
from llm.data.records import Conversation, Document, Rejected
from llm.errors import ConfigError, DataError
from tests.korean import documents
from tests.published import lines, parquet_bytes, tar_bytes, zip_bytes, zst

TEXT, CHAT = DataKind.text, DataKind.conversations
GOOD = lines({"text": "첫째 글"}, {"text": "둘째 글"}, {"text": "셋째 글"}, {"text": "넷째 글"})
MIB = 2**20


def config(path: Path | str, kind: DataKind = TEXT, **settings: Any) -> DataConfig:
    return DataConfig(**({"name": kind.value, "kind": kind, "path": str(path), "held_out_share": 0.5} | settings))


def both_sides(corpus: Corpus) -> list[Document | Conversation]:
    return [record for held_out in (False, True) for record in corpus.records(held_out=held_out)]


def read(path: Path, kind: DataKind = TEXT, **settings: Any) -> list[Document | Conversation | Rejected]:
    wanted = config(path, kind, **settings)
    return list(read_files(find_files(wanted), wanted))


# What becomes a record


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("가\n나\n\n다", [("가\n나", 1), ("다", 4)]),
        ("\n\n  \n가\n \t\n\n나\n", [("가", 4), ("나", 7)]),
        ("\ufeff가\r\n나\r\n\r\n다\r\n", [("가\n나", 1), ("다", 4)]),
        ("  들여 쓴 글 \n\u3000\n나", [("  들여 쓴 글 ", 1), ("나", 3)]),  # a line with an ideographic space is blank
    ],
)
def test_blank_lines_part_the_documents_of_a_txt_file(
    tmp_path: Path, content: str, expected: list[tuple[str, int]]
) -> None:
    path = tmp_path / "글.txt"
    path.write_bytes(content.encode())
    assert read(path) == [Document(text, f"{path}:{line}") for text, line in expected]


def test_a_pair_becomes_a_conversation(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": " 뭐? ", "answer": "응.\n"}), encoding="utf-8")
    turns = [{"role": "user", "content": "뭐?"}, {"role": "assistant", "content": "응."}]
    assert read(path, CHAT) == [Conversation(turns, f"{path}:1")]


def test_a_csv_cell_may_hold_lines_and_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes('쪽,text\r\n1,"여러 줄\r\n""따옴표"", 쉼표"\r\n'.encode("cp949"))
    assert read(tmp_path / "a.csv") == [Document('여러 줄\n"따옴표", 쉼표', f"{tmp_path}/a.csv:2")]


# What is wrong with a record

FAULTS = [  # kind, suffix, the record, what is said of it
    (TEXT, ".jsonl", b'{"text": \n', r"not JSON. Each line must be one JSON object \(Expecting value"),
    (TEXT, ".jsonl", b"[" * 100_000, "not JSON. .*recursion"),
    (TEXT, ".jsonl", b"3", "not a JSON object. A record must be an object, not 3"),
    (TEXT, ".jsonl", b'{"title": 1, "body": "x"}', '"text" is missing. It has: title, body. Set data.text_field=body'),
    (TEXT, ".jsonl", b'{"text": 3}', "text is int, not text. python -m llm.inspect <path> shows other fields"),
    (TEXT, ".jsonl", b'{"text": null}', "text is NoneType, not text"),
    (TEXT, ".jsonl", b'{"text": " \\n"}', "text is empty. Remove the record, or set data.bad_records=drop"),
    (TEXT, ".jsonl", b'{"text": "nan"}', "text is empty"),
    (TEXT, ".jsonl", b'{"text": "a\\u0000b"}', "text holds a NUL"),
    (TEXT, ".jsonl", b'{"text": "\\ud83d"}', "text holds a wrong byte or half a character. Make it UTF-8, or"),
    (TEXT, ".jsonl", b'{"text": "caf\xe9"}', "text holds a wrong byte"),
    (TEXT, ".txt", "앞 줄\n".encode() + "나쁜 줄".encode("cp949"), "text holds a wrong byte"),
    (CHAT, ".jsonl", b'{"x": "x", "y": "y"}', "fields are missing. .*messages, or question and answer, or your own.*"),
    (CHAT, ".jsonl", b'{"question": "x", "answer": null}', "answer is NoneType, not text"),
    (CHAT, ".jsonl", b'{"messages": "x"}', "messages are not a list of role and content. Write messages as"),
]


@pytest.mark.parametrize(("kind", "suffix", "bad", "message"), FAULTS, ids=[f[2][:30] for f in FAULTS])
def test_a_bad_record_is_refused_with_its_line_or_dropped_and_counted(
    tmp_path: Path, kind: DataKind, suffix: str, bad: bytes, message: str
) -> None:
    texts = documents(40)
    good = [json.dumps({"text": t} if kind is TEXT else {"question": t, "answer": "답"}).encode() for t in texts]
    good = good if suffix == ".jsonl" else [text.encode() for text in texts]
    path = tmp_path / f"a{suffix}"
    path.write_bytes((b"\n\n" if suffix == ".txt" else b"\n").join([*good[:20], bad.rstrip(), *good[20:]]))
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}:\d+: .*{message}"):
        both_sides(open_corpus(config(path, kind)))
    corpus = open_corpus(config(path, kind, bad_records=BadRecords.drop))
    assert len(both_sides(corpus)) == 40
    assert sum(corpus.dropped.values()) == 1
    assert corpus.notes()["dropped_records"] == dict(corpus.dropped)


def test_a_corpus_with_nothing_but_bad_records_or_with_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n{}\n[]", encoding="utf-8")
    with pytest.raises(DataError, match=r"all 3 records are bad. Set data.bad_records=refuse to see what is wrong"):
        both_sides(open_corpus(config(tmp_path, bad_records=BadRecords.drop)))
    (tmp_path / "a.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"there is no record in it. Give data.path="):
        both_sides(open_corpus(config(tmp_path)))


# What is wrong with a file: one line that says where, and all that can be read is kept


def cut(data: bytes) -> bytes:
    return data[: int(len(data) * 0.6)]


def pipe(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "x.jsonl")


def dangling(path: Path) -> None:
    path.mkdir()
    (path / "x.jsonl").symlink_to("nowhere")


def locked(data: bytes) -> bytes:
    """A zip of one member with the flag of encryption in both of its headers."""
    changed = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        changed[changed.index(mark) + offset] |= 1
    return bytes(changed)


def nested(depth: int) -> bytes:
    data = zip_bytes({"글.txt": b"x"})
    for _ in range(depth):
        data = zip_bytes({"안.zip": data})
    return data


def long_line(path: Path) -> None:
    with path.open("wb") as file:
        file.write(GOOD)
        file.truncate(200 * MIB)


MANY = lines(*({"text": f"{n} {os.urandom(24).hex()}"} for n in range(3000)))


def in_zip(data: bytes) -> bytes:
    return zip_bytes({"폭탄.txt": data})


def in_tar_gz(data: bytes) -> bytes:
    return tar_bytes({"폭탄.txt": data}, "w:gz")


def bomb(pack: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(pack((b" " * 65535 + b"\n") * 1600)) and None  # 100 MiB


DAMAGE: dict[str, tuple[bytes | Callable[[Path], None], str, int | None]] = {  # what is said, documents; None: some
    "cut.zip": (cut(zip_bytes({"글.jsonl": GOOD})), r"cut.zip: cannot be read. Fetch.*\(File is not a zip", 0),
    "cut.jsonl.gz": (cut(gzip.compress(MANY)), "cut.jsonl.gz: cannot be read. .*end-of-stream", None),
    "cut.jsonl.zst": (cut(zst(MANY)), "cut.jsonl.zst: cannot be read. .*Truncated", None),
    "cut.tar": (cut(tar_bytes({"글.jsonl": MANY})), "cut.tar.*: cannot be read. .*unexpected end", None),
    "cut.parquet": (cut(parquet_bytes([{"text": "가"}])), "cut.parquet: cannot be read", 0),
    "locked.zip": (locked(zip_bytes({"a.jsonl": GOOD})), r"locked.zip!a.jsonl: cannot be read. .* is encrypted", 0),
    "slip.zip": (zip_bytes({"../밖.txt": b"x", "안.jsonl": GOOD}), r"slip.zip!\.\./밖.txt: has a name that", 4),
    "slip.tar": (tar_bytes({"a/../../밖.txt": b"x", "안.jsonl": GOOD}), r"slip.tar!a/.*/밖.txt: has a name that", 4),
    "root.tar": (tar_bytes({"/밖.txt": b"x", "안.jsonl": GOOD}), "root.tar!/밖.txt: has a name that", 4),
    "back.zip": (zip_bytes({"..\\밖.txt": b"x", "안.jsonl": GOOD}), r"back.zip!\.\.\\밖.txt: has a name that", 4),
    "bomb.zip": (bomb(in_zip), "bomb.zip: unpacks to more than is plausible. Look at it", 0),
    "bomb.jsonl.gz": (bomb(gzip.compress), "bomb.jsonl.gz: unpacks to more than is plausible", 0),
    "bomb.tar.gz": (bomb(in_tar_gz), "bomb.tar.gz.*: unpacks to more than is plausible", 0),
    "nested.zip": (nested(5), "nested.zip!안.zip!안.zip!안.zip: lies in more than 3 archives", 0),
    "empty.txt": (b"", "empty.txt:1: the file is empty", 0),
    "long.jsonl": (long_line, "long.jsonl:5: longer than 32 MiB. Part it into documents", 4),
    "wrong.json": (b'[{"text": "a"},\n{"text": }]', "wrong.json:2: not JSON. The file must be one JSON value", 0),
    "list.json": (b'[{"text": "a"}, 3]', r"list.json\[1\]: not a JSON object", 1),
    "nothing.json": (b"[]", "nothing.json: the list is empty", 0),
    "quote.csv": ('text\n"열린 글\n다음 글\n'.encode(), r"quote.csv:2: not a csv row. Close .*unexpected end", 0),
    "columns.csv": ("text,쪽\n가나,1\n다,라,2\n마바,3\n".encode(), "columns.csv:3: has 3 columns where the header", 2),
    "null.parquet": (parquet_bytes([{"text": "가"}, {"text": None}]), r"null.parquet\[1\]: text is NoneType", 1),
    "dangling": (dangling, "x.jsonl: cannot be read. It is no plain file", 0),
    "pipe": (pipe, "x.jsonl: cannot be read. It is no plain file", 0),
}  # fmt: skip


def write(name: str, folder: Path) -> Path:
    data, path = DAMAGE[name][0], folder / name
    path.write_bytes(data) if isinstance(data, bytes) else data(path)
    return path


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line_that_says_where_and_the_rest_is_kept(tmp_path: Path, name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path, (_, message, kept) = write(name, tmp_path), DAMAGE[name]
    records = read(path)
    faults = [record for record in records if isinstance(record, Rejected)]
    assert faults and re.search(message, str(faults[0])) and str(faults[0]).startswith(str(path))
    assert "\n" not in str(faults[0]) and not list(tmp_path.parent.rglob("밖.txt"))
    assert len(records) - len(faults) == kept or (kept is None and len(records) < 3000)
    with pytest.raises(DataError, match=re.escape(str(faults[0]))):
        both_sides(open_corpus(config(path)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB


def test_a_hostile_file_is_one_line_of_a_command(tmp_path: Path) -> None:
    path = write("bomb.zip", tmp_path)
    words = ["train.py", "stage=documents", "data=text", f"data.path={path}", f"outputs={tmp_path}/outputs"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 65
    assert "Traceback" not in done.stderr and re.search(DAMAGE["bomb.zip"][1], done.stderr)


def test_a_damaged_member_costs_no_other_and_its_beginning_is_kept(tmp_path: Path) -> None:
    packed = bytearray(zip_bytes({"1.jsonl": MANY, "2.jsonl": GOOD}))
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        middle = archive.infolist()[0].compress_size // 2
    packed[middle : middle + 64] = b"\xff" * 64
    (tmp_path / "a.zip").write_bytes(packed)
    records = read(tmp_path / "a.zip")
    assert [r.origin for r in records if isinstance(r, Rejected) and r.reason == "cannot be read"] == [
        f"{tmp_path}/a.zip!1.jsonl"
    ]
    kept = [record.text for record in records if isinstance(record, Document)]
    assert kept[-4:] == ["첫째 글", "둘째 글", "셋째 글", "넷째 글"]
    assert kept[:500] == [json.loads(line)["text"] for line in MANY.splitlines()[:500]]


# A path that names nothing to read


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        (TEXT, "b.txt", r"data.path=.*b.txt does not exist. Did you mean data.path=.*a.txt\?"),
        (TEXT, "글.txt", r"data.path=.*글.txt does not exist. Did you mean 'data.path=.*긴 글.txt\"'\?"),
        (TEXT, "emty/a.txt", r"emty/a.txt does not exist. Did you mean data.path=.*/empty/a.txt\?"),
        (TEXT, "zzzzzz", r"zzzzzz does not exist: .* has no zzzzzz\. Give a file that is there"),
        (TEXT, "*.jsonl", r"\*.jsonl: no file matches it. Give a file, a folder, a quoted glob"),
        (TEXT, "empty", r"no .txt or .jsonl or .* is there"),
        (
            TEXT,
            "table.hwp",
            r"table.hwp is not .txt or .jsonl or .*, which is what data=text reads. Convert it, or say",
        ),
        (CHAT, "a.txt", r"a.txt is not .jsonl or .*, which is what data=conversations reads"),
    ],
)
def test_a_path_without_the_right_files_is_refused(tmp_path: Path, kind: DataKind, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("table.hwp", "a.txt", "긴 글.txt"):
        (tmp_path / name).write_text("가", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        open_corpus(config(tmp_path / path, kind))


# The split


def test_the_two_sides_are_all_documents_each_once(tmp_path: Path) -> None:
    texts = sorted(set(documents(300)))
    (tmp_path / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    assert sorted(record.text for record in both_sides(open_corpus(config(tmp_path)))) == texts


@pytest.mark.parametrize(("share", "side"), [(1e-9, "held out"), (1 - 1e-9, "left to train on")])
def test_a_side_without_a_record_is_refused(tmp_path: Path, share: float, side: str) -> None:
    (tmp_path / "a.txt").write_text("가\n\n나", encoding="utf-8")
    message = rf"of 2 records none is {side} at data.held_out_share={share}. Set data.held_out_share=0\.\d+, or split"
    with pytest.raises(DataError, match=message):
        both_sides(open_corpus(config(tmp_path, held_out_share=share)))


def test_the_share_that_is_held_out_is_the_share_asked_for_and_a_larger_one_holds_the_same_and_more() -> None:
    texts = [f"글 {number}" for number in range(20_000)]
    sides = {share: {text for text in texts if is_held_out(text, share)} for share in (0.01, 0.05, 0.3)}
    for share, side in sides.items():
        assert abs(len(side) - len(texts) * share) < 4 * (len(texts) * share * (1 - share)) ** 0.5  # four sigma
    assert sides[0.01] < sides[0.05] < sides[0.3]


def test_a_text_has_one_place_in_every_process_and_form() -> None:
    """By sha256sum of its characters in NFC without white space: what is held out once is held out for ever."""
    text = "대한민국은 민주공화국이다."
    assert place_of(text) == place_of(unicodedata.normalize("NFD", f" {text}\n")) == 0xBE9153219702E586
    assert not is_held_out(text, 0.744) and is_held_out(text, 0.745)  # 0xBE91... is 0.7444 of the whole


def test_equal_questions_fall_on_one_side(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        lines(*({"question": f"물음 {n % 20}", "answer": f"답 {n}"} for n in range(100)))
    )
    corpus = open_corpus(config(tmp_path, CHAT))
    train, held_out = ({record.text for record in corpus.records(held_out=side)} for side in (False, True))
    assert train.isdisjoint(held_out) and len(train | held_out) == 20


# What is read, is in the digest


def test_the_digest_is_of_the_contents_their_order_and_their_formats(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / "-".join(files)
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("_", ".")).write_text(content, encoding="utf-8")
        return open_corpus(config(folder)).digest()

    assert digest(a_txt="가", b_txt="나") == digest(c_txt="가", d_txt="나")
    others = [digest(e_txt="나", f_txt="가"), digest(g_txt="가나"), digest(h_txt="가", i_txt="나 ")]
    assert len({digest(a_txt="가", b_txt="나"), *others, digest(j_jsonl="가", k_txt="나")}) == 5


def test_a_layout_reads_only_the_files_that_it_names(tmp_path: Path) -> None:
    for name in ("가/책_TEXT_1.txt", "나/책_TEXT_2.txt", "나/책_INFO.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    found = read(tmp_path, layout=LayoutConfig(files=["*_TEXT_*", "나/*"], skip=["*INFO*"]))
    texts = [record.text for record in found if isinstance(record, Document)]
    assert texts == ["가/책_TEXT_1.txt", "나/책_TEXT_2.txt"]
