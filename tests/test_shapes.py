"""Shapes of instruction data: what each becomes, which roles are repaired, and what is refused by which rule."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm.config.data import BadRecords, DataConfig, DataKind, LayoutConfig, RepeatedTurns, Shape
from llm.data.corpus import open_corpus
from llm.data.records import Conversation, Rejected
from llm.data.sample import presets
from llm.data.turns import conversation
from llm.errors import ConfigError
from llm.inspect import diagnose, show
from tests.korean import sentences

ROLE = {"s": "system", "u": "user", "a": "assistant"}


def turns(*said: str) -> list[dict[str, str]]:
    """'u 물음', 'a 답' -> messages."""
    return [{"role": ROLE[text[0]], "content": text[2:]} for text in said]


def read(record: dict[str, Any], **layout: Any) -> Conversation | Rejected:
    try:
        return conversation(record, "a.jsonl:1", LayoutConfig(**layout))
    except Rejected as error:
        return error


ALPACA = "아래는 명령어입니다.\n\n### 명령어:\n번역하라\n\n### 입력:\n하늘\n\n### 응답:\nsky</s>"
SHAPES = {
    "messages": ({"messages": turns("s 규칙", "u 뭐?", "a 응")}, "messages", ["s 규칙", "u 뭐?", "a 응"]),
    "ShareGPT": (
        {"id": "1", "conversations": [{"from": "human", "value": "뭐?"}, {"from": "gpt", "value": "응"}] * 2},
        "messages",
        ["u 뭐?", "a 응", "u 뭐?", "a 응"],
    ),
    "ShareGPT with a system prompt beside": (
        {"system": "규칙", "conversations": [{"from": "human", "value": "뭐?"}, {"from": "gpt", "value": "응"}]},
        "messages",
        ["s 규칙", "u 뭐?", "a 응"],
    ),
    "speakers and utterances": (
        {"대화": [{"화자": "고객", "발화": "뭐?"}, {"화자": "상담사", "발화": "응"}]}, "messages", ["u 뭐?", "a 응"],
    ),
    "Alpaca": ({"instruction": "번역하라", "input": "하늘", "output": "sky"}, "pairs", ["u 번역하라\n\n하늘", "a sky"]),
    "Alpaca without input": ({"instruction": "뭐?", "input": "nan", "output": "응"}, "pairs", ["u 뭐?", "a 응"]),
    "Alpaca with a history": (
        {"instruction": "셋", "output": "넷", "history": [["하나", "둘"]], "system": "규칙"},
        "pairs",
        ["s 규칙", "u 하나", "a 둘", "u 셋", "a 넷"],
    ),
    "question and answer": ({"question": "뭐?", "answer": "응"}, "pairs", ["u 뭐?", "a 응"]),
    "Q and A of the chatbot csv": ({"Q": "뭐?", "A": "응", "label": "0"}, "pairs", ["u 뭐?", "a 응"]),
    "Korean columns": ({"질문": "뭐?", "답변": "응"}, "pairs", ["u 뭐?", "a 응"]),
    "prompt and completion": ({"prompt": "뭐?", "completion": "응"}, "pairs", ["u 뭐?", "a 응"]),
    "input and output alone": ({"input": "뭐?", "output": "응"}, "pairs", ["u 뭐?", "a 응"]),
    "hashes in one line": ({"text": "### 질문: 뭐? ### 답변: 응."}, "tagged", ["u 뭐?", "a 응."]),
    "Alpaca's prompt": ({"text": ALPACA}, "tagged", ["s 아래는 명령어입니다.", "u 번역하라\n\n하늘", "a sky"]),
    "KoGPT2's marks": ({"text": "<usr> 뭐? <sys> 응</s>"}, "tagged", ["u 뭐?", "a 응"]),
    "marks of roles": (
        {"text": "<|system|>규칙<|user|>하나<|assistant|>둘<|user|>셋<|assistant|>넷"},
        "tagged",
        ["s 규칙", "u 하나", "a 둘", "u 셋", "a 넷"],
    ),
    "ChatML as text": (
        {"text": "<|im_start|>user\n뭐?<|im_end|>\n<|im_start|>assistant\n응<|im_end|>\n"}, "tagged", ["u 뭐?", "a 응"],
    ),
    "lines": ({"text": "질문: 뭐?\n답변: 응\n질문: 또?\n답변: 또 응"}, "tagged", ["u 뭐?", "a 응", "u 또?", "a 또 응"]),
    "other headings stay text": (
        {"text": "### 질문: 뭐? ### 답변: ### 제목: 응"}, "tagged", ["u 뭐?", "a ### 제목: 응"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("record", "shape", "expected"), SHAPES.values(), ids=SHAPES)
def test_a_record_of_each_shape_becomes_the_conversation_worked_by_hand(
    record: dict[str, Any], shape: str, expected: list[str]
) -> None:
    found = read(record)
    assert isinstance(found, Conversation), found
    assert (found.messages, found.shape) == (turns(*expected), shape)


@pytest.mark.parametrize("wanted", ["messages", "pairs", "tagged"])
@pytest.mark.parametrize("name", ["messages", "Alpaca", "lines"])
def test_a_shape_that_is_asked_for_leaves_no_other(wanted: str, name: str) -> None:
    record, shape, _ = SHAPES[name]
    found = read(record, shape=Shape[wanted])
    assert isinstance(found, Conversation) if shape == wanted else found.reason == "fields are missing"


@pytest.mark.parametrize(("name", "other"), [("human", "gpt"), ("Human ", "bot"), ("사용자", "AI"), ("고객", "상담사")])
def test_usual_names_of_roles_are_repaired_and_said(name: str, other: str) -> None:
    found = read({"messages": [{"role": name, "content": "뭐?"}, {"role": other, "content": "응"}]})
    assert isinstance(found, Conversation)
    assert found.messages == turns("u 뭐?", "a 응")
    assert found.repairs == (f"role {name} read as user", f"role {other} read as assistant")


@pytest.mark.parametrize("role", ["tool", 3, None])
def test_a_role_that_no_rule_knows_is_refused_with_the_way_out(role: Any) -> None:
    found = read({"messages": [{"role": role, "content": "뭐?"}, {"role": "assistant", "content": "응"}]})
    assert str(found) == (
        f"a.jsonl:1: role {role!r} is unknown. Use system, user, assistant or another usual name, or name it in "
        "data.layout.roles."
    )


def test_a_role_of_ones_own_is_what_the_layout_says() -> None:
    said = {"messages": [{"role": "의뢰인", "content": "뭐?"}, {"role": "user", "content": "응"}]}
    found = read(said, roles={"의뢰인": "user", "user": "assistant"})
    assert isinstance(found, Conversation)
    assert (found.messages, found.repairs) == (turns("u 뭐?", "a 응"), ())


def test_turns_of_one_role_in_a_row_are_one_or_refused() -> None:
    record = {"messages": turns("u 하나", "u 둘", "a 셋", "a 넷")}
    found = read(record)
    assert isinstance(found, Conversation)
    assert found.messages == turns("u 하나\n둘", "a 셋\n넷")
    assert found.repairs == tuple(f"turns of {role} one after the other made one" for role in ("user", "assistant"))
    refused = read(record, repeated_turns=RepeatedTurns.refuse)
    assert isinstance(refused, Rejected)
    assert refused.reason == "turns are user, user, assistant, assistant"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["a 응", "u 뭐?"], "turns are assistant, user"),
        (["u 뭐?", "a 응", "u 또?"], "turns are user, assistant, user"),
        (["u 뭐?", "s 규칙", "a 응"], "turns are user, system, assistant"),
        (["s 규칙"], "turns are none"),
        (["u 뭐?", "a  "], "answer is empty"),
        (["u  ", "a 응"], "question is empty"),
        (["s  ", "u 뭐?", "a 응"], "system is empty"),
    ],
)
def test_turns_out_of_order_and_empty_ones_are_refused(said: list[str], reason: str) -> None:
    found = read({"messages": turns(*said)})
    assert isinstance(found, Rejected)
    assert found.reason == reason


def test_ones_own_marks_tell_turns_apart() -> None:
    text = {"text": "[문] 뭐? [답] 응 ### 질문: 그대로"}
    found = read(text, tags={"[문]": "user", "[답]": "assistant"})
    assert isinstance(found, Conversation)
    assert found.messages == turns("u 뭐?", "a 응 ### 질문: 그대로")


def test_text_without_marks_is_refused_with_an_example() -> None:
    found = read({"text": "그냥 글. 질문: 중간"}, shape=Shape.tagged)
    assert "A record needs text with marks such as ### 질문: ... ### 답변: ... in text; this one has: text" in str(
        found
    )


# data.map


def chat(path: Path | str, **settings: Any) -> DataConfig:
    defaults: dict[str, Any] = {"name": "conversations", "held_out_share": 0.5}
    return DataConfig(kind=DataKind.conversations, path=str(path), **(defaults | settings))


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


def test_ones_own_columns_are_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"제목": f"{n}?", "body": {"ko": f"{n}."}, "answer": "x"} for n in range(9)))
    config = chat(path, map={"question": "제목", "answer": "body.ko"})
    found = [record for _, record in open_corpus(config).split_records() if isinstance(record, Conversation)]
    assert [record.messages for record in found] == [turns(f"u {n}?", f"a {n}.") for n in range(9)]


def test_a_column_of_tagged_text_is_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *({"본문": f"<usr>{n}?<sys>{n}."} for n in range(9)))
    found = [record for _, record in open_corpus(chat(path, map={"text": "본문"})).split_records()]
    assert len(found) == 9
    assert isinstance(found[3], Conversation) and found[3].messages == turns("u 3?", "a 3.")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"map": {"qestion": "x"}},
            r"data.map: qestion is nothing that data=conv.*Did you mean question",
        ),
        (
            {"map": {"xyz": "x"}},
            "data.map: xyz is nothing that data=conversations reads. Choose one of question, input, answer",
        ),
        ({"map": {"answer": "a..b"}}, r"data.layout.answer=a..b is no path"),
    ],
)
def test_a_map_that_cannot_be_is_refused(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        chat("x", **settings)


# A corpus


def test_a_txt_file_of_marked_text_is_read_where_that_shape_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"<usr> {n}?\n<sys> {n}." for n in range(9)), encoding="utf-8")
    config = chat(path, layout=LayoutConfig(shape=Shape.tagged))
    found = [record for _, record in open_corpus(config).split_records() if isinstance(record, Conversation)]
    assert [record.messages for record in found] == [turns(f"u {n}?", f"a {n}.") for n in range(9)]
    assert found[2].origin == f"{path}:7"
    with pytest.raises(ConfigError, match=r"a.txt is not .jsonl or"):
        open_corpus(chat(path))


def test_a_system_prompt_is_given_to_those_that_have_none(tmp_path: Path) -> None:
    records = [{"question": f"{n}?", "answer": "응"} | ({"system": "제 것"} if n % 2 else {}) for n in range(10)]
    config = chat(write(tmp_path / "a.jsonl", *records), system_prompt=" 짧게 ")
    found = [record for _, record in open_corpus(config).split_records() if isinstance(record, Conversation)]
    assert [record.messages[0]["content"] for record in found] == ["짧게", "제 것"] * 5
    without = [side for side, _ in open_corpus(replace(config, system_prompt=None)).split_records()]
    assert [side for side, _ in open_corpus(config).split_records()] == without  # it does not move the split


def test_shapes_and_repairs_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = {"question": "{}?", "answer": "응"}
    human = {
        "conversations": [
            {"from": "human", "value": "하나"},
            {"from": "human", "value": "둘"},
            {"from": "gpt", "value": "응"},
        ]
    }
    path = write(tmp_path / "a.jsonl", *[pair | {"question": f"{n}?"} for n in range(8)], human, {"messages": []})
    corpus = open_corpus(chat(path, bad_records=BadRecords.drop))
    list(corpus.split_records())
    with caplog.at_level("INFO", logger="llm"):
        corpus.notes()
    assert corpus.shapes == {"pairs": 8, "messages": 1}
    assert corpus.repairs["turns of user one after the other made one"] == 1
    assert "conversations by the shape of their records: {'pairs': 8, 'messages': 1}" in caplog.text
    assert "1 conversations: role human read as user" in caplog.text
    assert "dropped 1 records: turns are none" in caplog.text


# The doctor


@pytest.mark.parametrize("name", ["ShareGPT", "Q and A of the chatbot csv", "KoGPT2's marks"])
def test_the_doctor_reads_every_shape(tmp_path: Path, name: str) -> None:
    record, shape, expected = SHAPES[name]
    said = [{**record, "n": text} for text in sentences(20)]
    found = diagnose(str(write(tmp_path / "a.jsonl", *said)))
    assert found.preset is not None and presets()[found.preset].kind is DataKind.conversations
    assert (found.fits, found.usable, found.shapes) == (1.0, 20, {shape: 20})
    assert f"shapes: 20 {shape}" in show(found)
    assert found.samples[0]["text"].startswith("user: " if expected[0][0] == "u" else "system: ")
