"""Small sets made to the published shapes of those that conf/data has presets for, with the texts that are in them."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from tests.korean import documents, sentences

S = sentences(40, seed=3)
D = documents(8, seed=4)
Made = tuple[dict[str, bytes], list[str]]  # file names with their bytes; the texts


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def lines(*records: Any) -> bytes:
    return b"\n".join(map(dumped, records)) + b"\n"


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    target = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), target)
    return target.getvalue()


def zst(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def zip_bytes(files: dict[str, bytes], *, cp949: bool = False) -> bytes:
    """A zip; with names in cp949 and without the UTF-8 flag, as Korean Windows writes them."""
    target, raw_names = io.BytesIO(), [name.encode("cp949" if cp949 else "utf-8") for name in files]
    plain = [f"{number}".rjust(len(raw), "~") for number, raw in enumerate(raw_names)]  # ASCII, of the same length
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in zip(plain if cp949 else files, files.values(), strict=True):
            archive.writestr(name, data)
    made = target.getvalue()
    for written, raw in zip(plain, raw_names, strict=True) if cp949 else ():
        made = made.replace(written.encode(), raw)
    return made


def tar_bytes(files: dict[str, bytes], mode: str = "w") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def _books() -> Made:
    label = {"paragraphs": [{"sentences": [{"id": 1, "text": S[0]}, {"text": S[1]}]}, {"sentences": [{"text": S[2]}]}]}
    files = {"1/책_TEXT_1.json": b"\xef\xbb\xbf" + dumped(label), "1/책_INFO.json": dumped({"title": "책"})}
    return {f"TL_100.zip/{name}": data for name, data in files.items()}, ["\n".join(S[:3])]


def _books_tsv() -> Made:
    rows = [f"B1.{n // 2}.{n}\t{S[n]}" for n in range(6)]
    return {"원천/책.tsv": ("\r\n".join(rows) + "\r\n").encode()}, ["\n".join(S[n : n + 2]) for n in (0, 2, 4)]


def _call_center() -> Made:
    keys = ["고객질문(요청)", "상담사질문(요청)", "고객답변", "상담사답변"]
    turns = [
        {"대화셋일련번호": f"A{n // 4}", "화자": "고객", **dict.fromkeys(keys, ""), keys[n % 4]: S[n]} for n in range(8)
    ]
    return {"콜.json": dumped(turns)}, ["\n".join(S[:4]), "\n".join(S[4:8])]


def _talk(*texts: str) -> list[dict[str, Any]]:
    return [{"turnID": f"T{n}", "participantID": "P01", "utterance": text} for n, text in enumerate(texts)]


def _one(value: Any, *texts: str) -> Callable[[], Made]:
    return lambda: ({"set.json": dumped(value)}, list(texts))


def _rows(name: str, records: list[dict[str, Any]], texts: list[str]) -> Callable[[], Made]:
    made = parquet_bytes(records) if name.endswith(".parquet") else lines(*records)
    return lambda: ({name: made}, texts)


_FINEWEB = {"dump": "CC-MAIN", "url": "https://example.com", "language": "kor", "language_script": "Hang"}
SETS: dict[str, Callable[[], Made]] = {
    "aihub_books": _books,
    "aihub_books_tsv": _books_tsv,
    "aihub_web": _one({"SJML": {"header": {}, "text": [{"title": "제목", "content": t} for t in D[:2]]}}, *D[:2]),
    "aihub_professional": _one(
        {"data": [{"attr": "초록", "sentence": [{"text": S[0]}, {"text": S[1]}]}, {"attr": "abs", "text": S[2]}]},
        f"{S[0]}\n{S[1]}",
        S[2],
    ),
    "aihub_document_summary": _one(
        {"documents": [{"id": "1", "text": [[{"index": 0, "sentence": S[0]}], [{"index": 1, "sentence": S[1]}]]}]},
        f"{S[0]}\n{S[1]}",
    ),
    "aihub_book_summary": _one({"passage_id": 1, "passage": D[0], "summary": S[0], "metadata": {}}, D[0]),
    "aihub_paper_summary": _one(
        {
            "data": [
                {"doc_id": "1", "summary_section": [{"orginal_text": S[0], "summary_text": "x"}]},
                {"doc_id": "2", "summary_entire": [{"orginal_text": S[1], "summary_text": "x"}], "summary_section": []},
            ]
        },
        S[0],
        S[1],
    ),
    "aihub_report_summary": _one({"Meta(Acqusition)": {}, "Meta(Refine)": {"passage": D[0]}, "Annotation": {}}, D[0]),
    "aihub_reading": _one(
        {"data": [{"title": "t", "paragraphs": [{"context": D[0], "qas": []}, {"context": D[1], "qas": []}]}]}, *D[:2]
    ),
    "aihub_patents": _one({"dataset": [{"documentId": "1", "abstract": D[0], "claims": "x"}]}, D[0]),
    "aihub_dialogue_summary": _one(
        {"data": [{"header": {}, "body": {"dialogue": _talk(*S[:3]), "summary": "요약"}}]}, "\n".join(S[:3])
    ),
    "aihub_sns": _one({"data": [{"header": {}, "body": _talk(*S[:3])}]}, "\n".join(S[:3])),
    "aihub_daily_talk": _one(
        {"info": [{"id": 1, "annotations": {"text": "x", "lines": [{"id": 1, "norm_text": t} for t in S[:2]]}}]},
        "\n".join(S[:2]),
    ),
    "aihub_call_center": _call_center,
    "nikl_written": _one(
        {"id": "N", "metadata": {}, "document": [{"id": "N.1", "paragraph": [{"id": "p", "form": t} for t in S[:3]]}]},
        "\n".join(S[:3]),
    ),
    "nikl_dialogue": _one(
        {"id": "S", "document": {"id": "S.1", "utterance": [{"speaker_id": "P1", "form": t} for t in S[:3]]}},
        "\n".join(S[:3]),
    ),
    "korean_textbooks": _rows("data.parquet", [{"text": t} for t in D], D),
    "fineweb2_korean": _rows("000.parquet", [{"text": t, "id": "1", **_FINEWEB} for t in D], D),
    "korean_wikipedia": lambda: (
        {
            "wiki_00": lines(*({"id": "1", "url": "u", "title": "제목", "text": t} for t in D[:4])),
            "cirrus.json": b"".join(lines({"index": {"_id": "1"}}, {"title": "제목", "text": t}) for t in D[4:]),
        },
        [*D[4:], *D[:4]],
    ),
    "koalpaca": _rows(
        "a.jsonl",
        [{"instruction": S[0], "input": "nan", "output": S[1]}, {"instruction": S[2], "input": S[3], "output": S[4]}],
        [S[0], f"{S[2]}\n\n{S[3]}"],
    ),
    "kullm": _rows(
        "b.jsonl", [{"id": f"a_{n}", "instruction": S[n], "input": "", "output": "답"} for n in (0, 1)], S[:2]
    ),
    "sharegpt": _rows(
        "c.jsonl",
        [{"id": "1", "conversations": [{"from": "human", "value": S[0]}, {"from": "gpt", "value": S[1]}]}],
        [S[0]],
    ),
    "conversations": _rows(
        "d.jsonl",
        [
            {
                "messages": [
                    {"role": "developer", "content": "규칙"},
                    {"role": "user", "content": S[0]},
                    {"role": "assistant", "content": S[1]},
                ]
            }
        ],
        [S[0]],
    ),
    "text": lambda: ({"글.txt": "\n\n".join(D).encode("cp949")}, D),
}


def _json_as(one: Callable[[Any], bytes], many: Callable[[list[Any]], bytes]) -> Callable[[bytes], bytes]:
    """A JSON file written anew: by `one` if it is one value, by `many` if it has one on each line."""

    def write(data: bytes) -> bytes:
        try:
            return one(json.loads(data.decode("utf-8-sig")))
        except json.JSONDecodeError:
            return many([json.loads(line) for line in data.splitlines()])

    return write


def _long(value: Any) -> bytes:
    """A value that begins with what no preset asks for, longer than any reader looks ahead."""
    record = value[0] if isinstance(value, list) else value
    longer = {"메모": "가" * 100_000, **record}
    return dumped([longer, *value[1:]] if isinstance(value, list) else longer)


def _pretty(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode()


ON_LINES = _json_as(dumped, lambda values: lines(*values)[:-1])
ONE_VALUE = _json_as(dumped, dumped)
PRETTY = _json_as(_pretty, _pretty)
LONG = _json_as(_long, lambda values: b"\n".join([_long(values[0]), *map(dumped, values[1:])]))
BOM = b"\xef\xbb\xbf"
VARIANTS: dict[str, Callable[[bytes], bytes]] = {  # of a file in JSON, each with the same records
    "without a final newline": ON_LINES,
    "with a final newline": lambda data: ON_LINES(data) + b"\n",
    "with blank lines around": lambda data: b"\n\n" + ON_LINES(data) + b"\n\n",
    "BOM": lambda data: BOM + ON_LINES(data) + b"\n",
    "CRLF": lambda data: ON_LINES(data).replace(b"\n", b"\r\n") + b"\r\n",
    "pretty-printed": PRETTY,
    "pretty-printed, BOM, CRLF": lambda data: BOM + PRETTY(data).replace(b"\n", b"\r\n") + b"\r\n",
    "one value on one line": ONE_VALUE,
    "one value on one line with a final newline": lambda data: ONE_VALUE(data) + b"\n",
    "long lines": lambda data: LONG(data) + b"\n",
    "long lines without a final newline": LONG,
    "UTF-16": lambda data: ON_LINES(data).decode().encode("utf-16"),
    "CP949": lambda data: ON_LINES(data).decode().encode("cp949"),
}


def is_json(name: str) -> bool:
    return name.endswith((".json", ".jsonl")) or "." not in name


def write_set(name: str, folder: Path, vary: Callable[[bytes], bytes] | None = None, *, packed: str = "") -> list[str]:
    """Write a set into a folder; what comes back are its texts, in order (of a conversation: its first question).

    `vary`: what is done to each file in JSON; `packed`: the zip that all files go into.
    """
    files, texts = SETS[name]()
    zips: dict[str, dict[str, bytes]] = {}
    for path, data in sorted(files.items()) if packed else files.items():
        data = vary(data) if vary and is_json(Path(path).name) else data
        zipped, inside, member = path.partition(".zip/")
        if inside:
            zips.setdefault(f"{zipped}.zip", {})[member] = data
        elif packed:
            zips.setdefault(packed, {})[path] = data
        else:
            _write(folder / path, data)
    for path, members in zips.items():
        _write(folder / path, zip_bytes(members, cp949=True))
    return texts


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
