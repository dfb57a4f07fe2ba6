"""A record of instruction data and its layout -> a conversation, or which rule it breaks.

messages   a list of turns: messages/role/content as OpenAI has them, conversations/from/value as ShareGPT
pairs      instruction, input and output as Alpaca has them, question and answer, Q and A, 질문 and 답변
tagged     one text: ### 질문: ... ### 답변: ..., <usr> ... <sys> ..., <|im_start|>user ..., or 질문: and 답변: on lines

A layout that names columns is taken at its word; else the usual names are looked for, in the order that stands here.
"""

import re
import shlex
from dataclasses import replace
from typing import Any

from llm.config.data import LayoutConfig, RepeatedTurns, Shape
from llm.data.records import Conversation, Rejected, check_text, first, values
from llm.data.suggest import question_and_answer

MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat", "대화")
ROLE = ("role", "from", "speaker", "author", "화자")
CONTENT = ("content", "value", "text", "utterance", "발화")
QUESTION = ("instruction", "question", "prompt", "query", "질문", "질의", "명령어", "Q", "q", "user", "input")
INPUT = ("input", "context", "입력", "문맥")
ANSWER = ("output", "answer", "response", "completion", "chosen", "답변", "응답", "A", "a", "assistant")
SYSTEM = ("system", "system_prompt", "시스템")
HISTORY = "history"  # [[question, answer], ...] that went before, in some Alpaca-like sets
USUAL = {"messages": MESSAGES, "question": QUESTION, "input": INPUT, "answer": ANSWER, "system": SYSTEM}

ROLES = ("system", "user", "assistant")
NAMES = {  # of roles as sets write them, in lower case
    "system": "system developer 시스템 지시",
    "user": "user usr human customer client prompter questioner instruction question prompt 사용자 유저 사람 고객"
    " 민원인 손님 질문 질문자 명령어 q",
    "assistant": "assistant gpt chatgpt gpt-4 bot chatbot ai model agent response answer output completion 상담사"
    " 상담원 챗봇 봇 답변 응답 어시스턴트 도우미 인공지능 a",
}
ROLE_OF = {name: role for role, names in NAMES.items() for name in names.split()}
INPUT_TAGS = ("input", "context", "입력", "맥락", "문맥")  # what goes with the question before it

_STYLES = (  # how a mark is written; the first that begins a text is the only one that counts in it
    re.compile(r"<\|im_start\|>[ \t]*([\w-]{1,24})[ \t]*\n?"),
    re.compile(r"<\|?([\w-]{1,24})\|?>(?!\s*</)"),
    re.compile(r"(?:^|(?<=\s))#{2,3} ?([\w-]{1,24}) ?:"),
    re.compile(r"^([\w-]{1,24}) ?:(?=\s)", re.MULTILINE),
)
_LAST_STYLE = len(_STYLES) - 1  # has no sign of its own: a text must begin with it
_ENDS = re.compile(r"(?:<\|im_end\|>|</s>|<s>|<\|endoftext\|>|<\|end_of_turn\|>)\s*$")


Turn = tuple[Any, Any]  # the role as the record has it, and what it says


def conversation(
    record: dict[str, Any], origin: str, layout: LayoutConfig, *, text_field: str = "text"
) -> Conversation:
    """A record of any shape that the layout allows as a conversation.

    The rules: a role's name is one of the known (`NAMES`, `layout.roles`); of two turns of one role in a row one is
    made; the system comes first, then user and assistant take turns, and the last turn is the assistant's; no turn is
    empty.

    Raises:
        Rejected: it breaks one of these, or has no turns.
    """
    shape, turns = _turns_of(record, origin, _with_usual_names(record, layout), text_field)
    if turns is None:
        raise Rejected(origin, "fields are missing", _needs(record, layout, text_field))
    messages: list[dict[str, str]] = []
    repairs: dict[str, None] = {}  # each once, in order
    for named, text in turns:
        role = _role_of(named, origin, layout)
        check_text(text, {"user": "question", "assistant": "answer"}.get(role, role), origin)
        if named not in ROLES and named not in layout.roles:
            repairs[f"role {named} read as {role}"[:80]] = None
        if messages and messages[-1]["role"] == role and layout.repeated_turns is RepeatedTurns.merge:
            repairs[f"turns of {role} one after the other made one"] = None
            messages[-1]["content"] += "\n" + text.strip()
        else:
            messages.append({"role": role, "content": text.strip()})
    order = [message["role"] for message in messages]
    order = order[1:] if order[:1] == ["system"] else order
    if not order or order != ["user", "assistant"] * (len(order) // 2):
        fix = "After an optional system turn, user and assistant must take turns, and the last must be the assistant's"
        raise Rejected(origin, f"turns are {', '.join(order) or 'none'}"[:80], fix)
    return Conversation(messages, origin, shape.name, tuple(repairs))


def _role_of(name: Any, origin: str, layout: LayoutConfig) -> str:
    known = layout.roles.get(name, name) if isinstance(name, str) else ""
    role = known if known in ROLES else ROLE_OF.get(known.strip().lower())
    if role is None:
        fix = f"Use {', '.join([*layout.roles, *ROLES])} or another usual name, or name it in data.layout.roles"
        raise Rejected(origin, f"role {name!r} is unknown"[:80], fix)
    return role


def _needs(record: dict[str, Any], layout: LayoutConfig, text_field: str) -> str:
    """What a record without turns should have."""
    has = ", ".join(map(str, record))[:200] or "nothing"
    if layout.shape is Shape.tagged:
        return (
            f"A record needs text with marks such as ### 질문: ... ### 답변: ... in {text_field}; this one has: {has}"
        )
    own = question_and_answer([record]) or "+data.map={question: <column>, answer: <column>}"
    needs = f"{layout.messages}, or {layout.question} and {layout.answer}"
    return f"A record needs {needs}, or your own: {shlex.quote(own)}; this one has: {has}"


def _turns_of(
    record: dict[str, Any], origin: str, layout: LayoutConfig, text_field: str
) -> tuple[Shape, list[Turn] | None]:
    """(shape, the turns of a record); None where it has the keys of no shape that the layout allows."""
    for shape, read in ((Shape.messages, _messages), (Shape.pairs, _pairs)):
        if layout.shape in (Shape.auto, shape) and (turns := read(record, origin, layout)) is not None:
            return shape, [*_system(record, layout), *turns]
    text = first(record, text_field)
    is_tagged = layout.shape in (Shape.auto, Shape.tagged) and isinstance(text, str)
    return Shape.tagged, _split_tagged(text, layout.tags) if is_tagged else None


def _with_usual_names(record: dict[str, Any], layout: LayoutConfig) -> LayoutConfig:
    """The layout with the usual names that this record has, where the layout names no columns of its own."""
    usual = LayoutConfig()
    if any(getattr(layout, key) != getattr(usual, key) for key in ("messages", "question", "answer")):
        return layout
    found: dict[str, Any] = {
        key: name for key, names in USUAL.items() if (name := _first_key(record, names)) is not None
    }
    if layout.input is not None or found.get("input") == found.get("question"):
        found.pop("input", None)
    if layout.system is not None:
        found.pop("system", None)
    return replace(layout, **found)


def usual_columns() -> list[str]:
    """The top-level keys that are looked at where a layout names none."""
    return [*(name for names in USUAL.values() for name in names), HISTORY]


def _split_tagged(text: str, tags: dict[str, str]) -> list[Turn] | None:
    """The turns of a text whose marks tell them apart; None where it has not both a question's and an answer's.

    What stands before the first mark is the system's, as the preamble of Alpaca's prompt is.
    """
    for number, style in enumerate(_STYLES if not tags else [_of(tags)]):
        marks = [match for match in style.finditer(text) if _role(match[1], tags, text) is not None]
        roles = {_role(match[1], tags, text) for match in marks}
        if {"user", "assistant"} <= roles and (number != _LAST_STYLE or not text[: marks[0].start()].strip()):
            return _cut_at(marks, text, tags)
    return None


def _messages(record: dict[str, Any], origin: str, layout: LayoutConfig) -> list[Turn] | None:
    if not (found := values(record, layout.messages)):
        return None
    listed = found[0] if len(found) == 1 else found
    role, content = layout.role, layout.content
    if (role, content) == ("role", "content") and isinstance(listed, list) and listed and isinstance(listed[0], dict):
        role, content = _first_key(listed[0], ROLE) or role, _first_key(listed[0], CONTENT) or content
    if not isinstance(listed, list) or not all(isinstance(turn, dict) and role in turn for turn in listed):
        raise _no_turns(origin, layout)
    return [(turn[role], first(turn, content)) for turn in listed]


def _no_turns(origin: str, layout: LayoutConfig) -> Rejected:
    example = f'[{{"{layout.role}": "user", "{layout.content}": "..."}}, ...]'
    return Rejected(origin, "messages are not a list of role and content", f"Write {layout.messages} as {example}")


def _pairs(record: dict[str, Any], origin: str, layout: LayoutConfig) -> list[Turn] | None:
    question, answer = values(record, layout.question), values(record, layout.answer)
    if not question or not answer:
        return None
    asked = question[0]
    more = first(record, layout.input) if layout.input else None
    if isinstance(asked, str) and isinstance(more, str) and more.strip().lower() not in ("", "nan"):
        asked = f"{asked.strip()}\n\n{more.strip()}"
    earlier = record.get(HISTORY) or []
    if not isinstance(earlier, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in earlier):
        raise _no_turns(origin, layout)
    said = [(role, text) for pair in earlier for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [*said, ("user", asked), ("assistant", answer[0])]


def _system(record: dict[str, Any], layout: LayoutConfig) -> list[Turn]:
    system = first(record, layout.system) if layout.system else None
    return [("system", system)] if isinstance(system, str) and system.strip() else []


def _cut_at(marks: list[re.Match[str]], text: str, tags: dict[str, str]) -> list[Turn]:
    before = text[: marks[0].start()].strip()
    turns: list[Turn] = [("system", before)] if before and not _ENDS.fullmatch(before) else []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=True):
        said = text[mark.end() : end]
        while (cut := _ENDS.sub("", said)) != said:
            said = cut
        role = _role(mark[1], tags, text)
        if role == "input":
            if said.strip() and turns:
                turns[-1] = (turns[-1][0], f"{turns[-1][1].strip()}\n\n{said.strip()}")
        else:
            turns.append((role, said.strip()))
    return turns


def _role(name: str, tags: dict[str, str], text: str) -> str | None:
    """The role of a mark: of <sys> the assistant's where <usr> stands beside it, as KoGPT2 has them."""
    if tags:
        return tags[name]
    lowered = name.lower()
    if lowered in INPUT_TAGS:
        return "input"
    if lowered == "sys":
        return "assistant" if re.search(r"<\|?usr\|?>", text) else "system"
    return ROLE_OF.get(lowered)


def _of(tags: dict[str, str]) -> re.Pattern[str]:
    return re.compile("(" + "|".join(re.escape(tag) for tag in sorted(tags, key=len, reverse=True)) + ")")


def _first_key(record: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in record), None)
