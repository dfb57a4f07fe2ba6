"""Files of the user: what becomes a document or a conversation, and what is wrong with the rest."""

import json
import re
from pathlib import Path

import pytest

from llm.config.data import BadRecords, DataConfig, DataKind
from llm.data import Conversation, Corpus, open_corpus
from llm.data.files import open_files
from llm.data.records import Document, Rejected
from llm.data.split import is_held_out
from llm.errors import ConfigError, DataError
from tests.korean import documents

TEXT, CHAT = DataKind.text, DataKind.conversations


def config(path: Path | str, kind: DataKind = TEXT, **settings: object) -> DataConfig:
    return DataConfig(**({"name": kind.value, "kind": kind, "path": str(path), "held_out_share": 0.5} | settings))


def both_sides(corpus: Corpus) -> list[Document | Conversation]:
    return [record for held_out in (False, True) for record in corpus.records(held_out=held_out)]


def read(path: Path, kind: DataKind = TEXT, **settings: object) -> list[Document | Conversation | Rejected]:
    return list(open_files(config(path, kind, **settings)).records())


# What becomes a record


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("가\n나\n\n다", [("가\n나", 1), ("다", 4)]),
        ("\n\n  \n가\n \t\n\n나\n", [("가", 4), ("나", 7)]),
        ("가\r\n나\r\n\r\n다\r\n", [("가\n나", 1), ("다", 4)]),
        ("\ufeff가\n\n나", [("가", 1), ("나", 3)]),
        ("  들여 쓴 글 \n", [("  들여 쓴 글 ", 1)]),
        ("가\n\u3000\n나", [("가", 1), ("나", 3)]),  # a line with an ideographic space is blank
    ],
)
def test_blank_lines_part_the_documents_of_a_txt_file(
    tmp_path: Path, content: str, expected: list[tuple[str, int]]
) -> None:
    path = tmp_path / "글.txt"
    path.write_bytes(content.encode())
    assert read(path) == [Document(text, f"{path}:{line}") for text, line in expected]


def test_each_line_of_a_jsonl_file_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['\ufeff{"text": "가\\n나"}', "", '{"text": " 다 ", "title": 3}\r']
    path.write_bytes("\n".join(lines).encode())
    assert read(path) == [Document("가\n나", f"{path}:1"), Document(" 다 ", f"{path}:3")]


def test_the_text_field_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "가", "body": "나"}', encoding="utf-8")
    assert read(path, text_field="body") == [Document("나", f"{path}:1")]


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"question": " 뭐? ", "answer": "응.\n"}, [("user", "뭐?"), ("assistant", "응.")]),
        (
            {"messages": [{"role": "user", "content": "가"}, {"role": "assistant", "content": "나"}]},
            [("user", "가"), ("assistant", "나")],
        ),
        (
            {"messages": [{"role": r, "content": r} for r in ["system", *["user", "assistant"] * 2]], "question": "x"},
            [(r, r) for r in ["system", *["user", "assistant"] * 2]],
        ),
    ],
)
def test_a_record_becomes_a_conversation(tmp_path: Path, record: object, turns: list[tuple[str, str]]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record), encoding="utf-8")
    expected = [{"role": role, "content": content} for role, content in turns]
    assert read(path, CHAT) == [Conversation(expected, f"{path}:1")]


def test_a_file_a_folder_and_a_glob_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("나.txt", "가.txt", "안/다.jsonl", "[이상한] 이름.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"text": "{name}"}}' if "jsonl" in name else name, encoding="utf-8")
    (tmp_path / "README.md").write_text("not data")

    def texts(path: Path | str) -> list[str]:
        return [record.text for record in read(Path(path)) if isinstance(record, Document)]

    assert texts(tmp_path) == ["[이상한] 이름.txt", "가.txt", "나.txt", "안/다.jsonl"]
    assert texts(tmp_path / "*.txt") == ["[이상한] 이름.txt", "가.txt", "나.txt"]
    assert texts(tmp_path / "**" / "*.jsonl") == ["안/다.jsonl"]
    assert texts(tmp_path / "가.txt") == ["가.txt"]
    assert texts(tmp_path / "[이상한] 이름.txt") == ["[이상한] 이름.txt"]


# What is wrong with the rest

TEXT_FAULTS = {
    "empty.txt": (b"", "1: the file is empty. Remove it"),
    "empty.jsonl": (b"", "1: the file is empty. Remove it"),
    "cut.txt": ("가".encode()[:2], r"1: not UTF-8 \(byte 0xea\)"),
    "nul.txt": ("가\0나".encode(), "1: text holds a NUL. Convert it to UTF-8"),
    "latin.jsonl": (b'{"text": "caf\xe9"}', r"1: not UTF-8 \(byte 0xe9\)"),
    "torn.jsonl": (
        b'{"text": "a',
        r"1: not JSON. The file must be one JSON value, or have one on each line \(Unterminated",
    ),
    "deep.jsonl": (b"[" * 100_000, "1: not JSON. .*nested too deeply"),
    "number alone.jsonl": (b"3", "1: not a JSON object. A record must be an object, not 3"),
    "keys.jsonl": (
        b'{"title": 1, "body": "x"}',
        '1: field "text" is missing. It has: title, body. Set data.text_field=body',
    ),
    "no keys.jsonl": (b"{}", '1: field "text" is missing. It has: nothing.'),
    "number.jsonl": (b'{"text": 3}', "1: text is int, not text. Make it a string"),
    "null.jsonl": (b'{"text": null}', "1: text is NoneType, not text"),
    "blank.jsonl": (b'{"text": " \\n"}', "1: text is empty. Remove the record, or set data.bad_records=drop"),
    "half.jsonl": (b'{"text": "\\ud83d"}', r"1: text holds half a character \(a lone surrogate\)"),
    "nul.jsonl": (b'{"text": "a\\u0000b"}', "1: text holds a NUL"),
}


def turns(*roles: str) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": "말"} for role in roles]}).encode()


CHAT_FAULTS = {
    "keys.jsonl": (
        b'{"x": "x", "y": "y"}',
        "1: fields are missing. .*messages, or question and answer, or your own.*has: x, y",
    ),
    "no answer.jsonl": (b'{"question": "x", "answer": ""}', "1: answer is empty."),
    "null answer.jsonl": (b'{"question": "x", "answer": null}', "1: answer is NoneType, not text"),
    "no question.jsonl": (b'{"question": " ", "answer": "y"}', "1: question is empty."),
    "not a list.jsonl": (b'{"messages": "x"}', "1: messages are not a list of role and content. Write messages as"),
    "no role.jsonl": (b'{"messages": [{"content": "x"}]}', "1: messages are not a list of role and content."),
    "no content.jsonl": (b'{"messages": [{"role": "user"}]}', "1: question is NoneType, not text"),
    "role.jsonl": (
        turns("tool"),
        "1: role 'tool' is unknown. Use system, user, assistant or another usual name, or add",
    ),
    "no turns.jsonl": (b'{"messages": []}', "1: turns are none. After an optional system turn"),
    "one turn.jsonl": (turns("user"), "1: turns are user. "),
    "first.jsonl": (turns("assistant", "user"), "1: turns are assistant, user. "),
    "last.jsonl": (turns("user", "assistant", "user"), "1: turns are user, assistant, user. "),
    "late system.jsonl": (turns("user", "system", "assistant"), "1: turns are user, system, assistant. "),
}
FAULTS = [(TEXT, name, *case) for name, case in TEXT_FAULTS.items()]
FAULTS += [(CHAT, name, *case) for name, case in CHAT_FAULTS.items()]


@pytest.mark.parametrize(("kind", "name", "content", "message"), FAULTS, ids=[f"{f[0].value} {f[1]}" for f in FAULTS])
def test_a_bad_record_is_refused_with_its_line_and_the_way_out(
    tmp_path: Path, kind: DataKind, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    corpus = open_corpus(config(tmp_path / name, kind))
    for held_out in (False, True):
        with pytest.raises(DataError, match="^" + re.escape(str(tmp_path / name)) + ":" + message):
            list(corpus.records(held_out=held_out))


def good_records(kind: DataKind, suffix: str, *, seed: int) -> list[bytes]:
    """40 records as a file of that kind has them."""
    texts = documents(40, seed=seed)
    if suffix == ".txt":
        return [text.encode() for text in texts]
    return [json.dumps({"text": t} if kind is TEXT else {"question": t, "answer": "답"}).encode() for t in texts]


@pytest.mark.parametrize(("kind", "name", "content", "_message"), FAULTS, ids=[f"{f[0].value} {f[1]}" for f in FAULTS])
def test_a_bad_record_is_dropped_and_counted_once_and_nothing_else_is_lost(
    tmp_path: Path, kind: DataKind, name: str, content: bytes, _message: str
) -> None:
    suffix = Path(name).suffix
    part = b"\n\n" if suffix == ".txt" else b"\n"
    first, second = (part.join(good_records(kind, suffix, seed=seed)) for seed in (1, 2))
    (tmp_path / f"1{suffix}").write_bytes(first + (part + content + part if content else b""))
    (tmp_path / f"2{suffix}").write_bytes(second)
    if not content:
        (tmp_path / name).write_bytes(content)
    reasons = [record.reason for record in read(tmp_path, kind) if isinstance(record, Rejected)]
    assert len(reasons) == 1

    corpus = open_corpus(config(tmp_path, kind, bad_records=BadRecords.drop))
    kept = 0
    for held_out in (False, True):
        kept += len(list(corpus.records(held_out=held_out)))
        assert corpus.dropped == {reasons[0]: 1}
        assert corpus.notes()["dropped_records"] == {reasons[0]: 1}
    assert kept == 80


def test_a_paragraph_with_a_bad_line_is_dropped_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("첫 글\n\n앞 줄\n".encode() + "나쁜 줄\n또 나쁜 줄\n".encode("cp949") + "뒤 줄\n\n끝 글".encode())
    first, bad, last = read(path)
    assert (first, last) == (Document("첫 글", f"{path}:1"), Document("끝 글", f"{path}:8"))
    assert isinstance(bad, Rejected) and bad.origin == f"{path}:4"


def test_a_source_with_nothing_but_bad_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n{}\n[]", encoding="utf-8")
    corpus = open_corpus(config(tmp_path, bad_records=BadRecords.drop))
    with pytest.raises(DataError, match=r"all 3 records are bad. Set data.bad_records=refuse to see what is wrong"):
        list(corpus.records(held_out=False))


def test_a_source_without_a_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"there is no record in it. Give data.path="):
        list(open_corpus(config(tmp_path)).records(held_out=False))


@pytest.mark.parametrize(("share", "side"), [(1e-9, "held out"), (1 - 1e-9, "left to train on")])
def test_a_side_without_a_record_is_refused(tmp_path: Path, share: float, side: str) -> None:
    (tmp_path / "a.txt").write_text("가\n\n나", encoding="utf-8")
    with pytest.raises(
        DataError,
        match=rf"of 2 records none is {side} at data.held_out_share={share}. Set data.held_out_share=0\.\d+, or split",
    ):
        both_sides(open_corpus(config(tmp_path, held_out_share=share)))


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        (TEXT, "b.txt", r"data.path=.*b.txt does not exist. Did you mean data.path=.*a.txt\?"),
        (TEXT, "글.txt", r"data.path=.*글.txt does not exist. Did you mean 'data.path=.*긴 글.txt\"'\?"),
        (TEXT, "emty/a.txt", r"emty/a.txt does not exist: there is no .*emty. Did you mean data.path=.*/empty/a.txt\?"),
        (TEXT, "empty/a.txt", r"empty/a.txt does not exist. .*/empty has nothing in it\."),
        (TEXT, "zzzzzz", r"zzzzzz does not exist. .* has a.txt, empty, table.hwp, 긴 글.txt\."),
        (TEXT, "*.jsonl", r"\*.jsonl: no file matches it. Give a file, a folder, a quoted glob"),
        (TEXT, "empty", r"no .txt or .jsonl or .* is there"),
        (
            TEXT,
            "kowiki.xml.bz2",
            r"kowiki.xml.bz2 is XML, which is not read. Of a Wikipedia give its parquet ",
        ),
        (
            TEXT,
            "table.hwp",
            r"table.hwp is not .txt or .jsonl or .*, which is what data=text reads. Convert it, or say",
        ),
        (CHAT, "a.txt", r"a.txt is not .jsonl or .*, which is what data=conversations reads"),
        (CHAT, ".", r"no .jsonl or .* is there"),
    ],
)
def test_a_path_without_the_right_files_is_refused(tmp_path: Path, kind: DataKind, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    if path.endswith(".xml.bz2"):
        (tmp_path / path).touch()
    for name in ("table.hwp", "a.txt", "긴 글.txt"):
        (tmp_path / name).write_text("가", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        open_corpus(config(tmp_path / path, kind))


# The split


def test_the_two_sides_are_all_documents_each_once(tmp_path: Path) -> None:
    texts = sorted(set(documents(300)))
    (tmp_path / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    assert sorted(record.text for record in both_sides(open_corpus(config(tmp_path)))) == texts


def test_a_record_keeps_its_side_when_others_come_or_go(tmp_path: Path) -> None:
    sides = []
    for name, texts in (("few", documents(50)), ("many", documents(50)[::-1] + documents(50, seed=5))):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts), encoding="utf-8")
        corpus = open_corpus(config(tmp_path / f"{name}.txt"))
        sides.append({record.text: held_out for held_out, record in corpus.split_records()})
    assert sides[0].items() <= sides[1].items()


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_the_share_that_is_held_out_is_the_share_asked_for(share: float) -> None:
    count = 20_000
    held_out = sum(is_held_out(f"글 {number}", share) for number in range(count))
    four_sigma = 4 * (count * share * (1 - share)) ** 0.5
    assert abs(held_out - count * share) < four_sigma


def test_a_larger_share_holds_out_more_of_the_same() -> None:
    texts = [f"글 {number}" for number in range(1000)]
    small, large = ({text for text in texts if is_held_out(text, share)} for share in (0.1, 0.2))
    assert small < large


def test_equal_questions_fall_on_one_side(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"물음 {n % 20}", "answer": f"답 {n}"}) for n in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    corpus = open_corpus(config(tmp_path, CHAT))
    train, held_out = ({record.text for record in corpus.records(held_out=side)} for side in (False, True))
    assert train.isdisjoint(held_out)
    assert len(train | held_out) == 20


# What is read, is in the digest


def test_the_digest_is_of_the_contents_and_their_order(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / "-".join(files)
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / f"{name}.txt").write_text(content, encoding="utf-8")
        return open_corpus(config(folder)).digest()

    assert digest(a="가", b="나") == digest(c="가", d="나")
    assert len({digest(a="가", b="나"), digest(e="나", f="가"), digest(g="가나"), digest(h="가", i="나 ")}) == 4
