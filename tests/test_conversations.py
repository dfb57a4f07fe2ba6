"""Conversations: what the assistant says and its end are the labels, and nothing else is."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from llm.data.conversations import ConversationRows, Encoded, encode_conversations
from llm.data.order import MicroBatch
from llm.data.records import Conversation
from llm.data.rows import IGNORED
from llm.errors import DataError
from llm.tokenizer.chat import TEMPLATES
from llm.tokenizer.folder import Special, load_chat, read_special
from tests.korean import save_preset, sentences

PRESETS = ("blog", "byte_bpe", "char_bpe")
LOSSLESS = ("byte_bpe", "char_bpe", "unigram")
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PreTrainedTokenizerFast, Special]]:
    root = tmp_path_factory.mktemp("tokenizers")
    folders = {name: save_preset(name, root / name) for name in {*PRESETS, *LOSSLESS}}
    return {name: (load_chat(folder), read_special(folder)) for name, folder in folders.items()}


def conversation(*turns: str, system: str | None = None, origin: str = "a.jsonl:1") -> Conversation:
    roles = [("system", system)] if system is not None else []
    roles += [(("user", "assistant")[place % 2], turn) for place, turn in enumerate(turns)]
    return Conversation([{"role": role, "content": content or ""} for role, content in roles], origin)


def encode(
    chat: tuple[PreTrainedTokenizerFast, Special], *conversations: Conversation, sequence_length: int = 10_000
) -> tuple[list[Encoded], Counter[str]]:
    return encode_conversations(conversations, chat[0], sequence_length=sequence_length)


CASES = [
    (conversation("오늘 뭐 해?", "책을 읽었다."), [f" 책을 읽었다.{END}"]),
    (conversation("하나", "둘", "셋", "넷 다섯"), [f" 둘{END}", f" 넷 다섯{END}"]),
    (conversation("질문: 뭐?", "답변: 질문: 응", system="짧게 말해라"), [f" 답변: 질문: 응{END}"]),
    (conversation("여러\n줄", "첫 줄\n\n  둘째 줄"), [f" 첫 줄\n\n  둘째 줄{END}"]),
    (conversation("이모지?", "🙂 뷁 支援"), [f" 🙂 뷁 支援{END}"]),
]


@pytest.mark.parametrize("name", ["byte_bpe", "char_bpe"])
@pytest.mark.parametrize(("case", "answers"), CASES)
def test_the_labels_spell_what_the_assistant_says_and_its_end(
    chats: dict[str, tuple[PreTrainedTokenizerFast, Special]], name: str, case: Conversation, answers: list[str]
) -> None:
    [encoded], dropped = encode(chats[name], case)
    marked = encoded.input_ids[encoded.is_answer]
    assert chats[name][0].decode(marked) == "".join(answers)
    assert not dropped
    row = chats[name][0].apply_chat_template(
        case.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded.input_ids.tolist() == row["input_ids"]
    assert encoded.is_answer.tolist() == [bool(mark) for mark in row["assistant_masks"]]
    unmarked = chats[name][0].decode(encoded.input_ids[~encoded.is_answer])
    turns = {"system": "지시: {}\n", "user": "질문: {}\n답변:", "assistant": ""}
    assert unmarked == END + "".join(turns[m["role"]].format(m["content"]) for m in case.messages)


def test_the_labels_of_the_lossy_preset_worked_by_hand(
    chats: dict[str, tuple[PreTrainedTokenizerFast, Special]],
) -> None:
    tokenizer, tokens = chats["blog"]
    [encoded], _ = encode(chats["blog"], conversation("책을 읽었다", "오늘 책을 샀다.", "나는", "우리는"))
    is_answer = encoded.is_answer.tolist()
    pieces = tokenizer.convert_ids_to_tokens(encoded.input_ids.tolist())
    assert [piece for piece, mine in zip(pieces, is_answer, strict=True) if mine] == [
        "오늘", "책을", "샀다", ".", END, "우리는", END
    ]  # fmt: skip
    assert encoded.input_ids[is_answer].tolist().count(tokens.eos_id) == 2


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_too_long_is_dropped_and_counted(
    chats: dict[str, tuple[PreTrainedTokenizerFast, Special]], name: str
) -> None:
    short, long = conversation("하나", "둘"), conversation("책을 " * 30, "나는 " * 30 + "끝")
    [one, other], _ = encode(chats[name], short, long)
    longest = len(other.input_ids)
    kept, dropped = encode(chats[name], short, long, long, sequence_length=longest - 1)
    assert [row.input_ids.tolist() for row in kept] == [one.input_ids.tolist()]
    assert dropped == Counter({f"longer than data.sequence_length={longest - 1} tokens": 2})
    kept, dropped = encode(chats[name], short, long, sequence_length=longest)
    assert (len(kept), dropped) == (2, Counter())


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("name", LOSSLESS)
def test_a_control_tokens_name_in_a_turn_is_text(
    chats: dict[str, tuple[PreTrainedTokenizerFast, Special]], name: str, turn: int
) -> None:
    tokenizer, tokens = chats[name]
    for token in tokens.tokens:
        said = ["지시", "물음", "답"]
        said[turn] = f"앞 {token}뒤{token}"
        [plain, encoded], _ = encode(
            chats[name], conversation("물음", "답", system="지시"), conversation(*said[1:], system=said[0])
        )
        ids = encoded.input_ids.tolist()
        controls = [tokens.bos_id, tokens.eos_id, tokens.pad_id]
        assert [id for id in ids if id in controls] == [id for id in plain.input_ids.tolist() if id in controls]
        assert tokenizer.decode(ids, skip_special_tokens=True) == f"지시: {said[0]}\n질문: {said[1]}\n답변: {said[2]}"
        assert tokenizer.decode(encoded.input_ids[encoded.is_answer]) == f" {said[2]}{END}"


def test_a_control_token_is_not_found_by_its_name_in_a_vocabulary() -> None:
    """Where the library, told to take it for text, would find it all the same."""
    words = ["<unk>", "<s>", "</s>", "질문:", "답변:", "가", "나"]
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    chat = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    chat.chat_template = TEMPLATES["plain"]
    tokens = Special(bos_id=1, eos_id=2, pad_id=2, tokens=("<s>", "</s>", "<unk>"))
    [encoded], _ = encode((chat, tokens), conversation("가 </s> 나", "나 <s> 가"))
    assert encoded.input_ids.tolist() == [1, 3, 5, 0, 6, 4, 6, 0, 5, 2]
    assert encoded.is_answer.tolist() == [False] * 6 + [True] * 4


ANSWER = "{% generation %}{{ message['content'] }}{% endgeneration %}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            "{% for message in messages %}{{ loop.length }}" + ANSWER + "{% endfor %}",
            "marks 4 pieces as the assistant's where 2 answers are",
        ),
        (
            "{% for message in messages %}{% if message['role'] == 'user' %}{{ loop.length }}{% else %}"
            + ANSWER
            + "{% endif %}{% endfor %}",
            "does not put one turn after another, so that it is not known where an answer begins",
        ),
        (
            "{% for message in messages %}{{ message['content'] if message['role'] == 'user' }}{% endfor %}",
            "marks 0 pieces as the assistant's where 2 answers are",
        ),
    ],
)
def test_a_template_that_does_not_put_turn_after_turn_is_refused(
    chats: dict[str, tuple[PreTrainedTokenizerFast, Special]], monkeypatch: pytest.MonkeyPatch, template: str, why: str
) -> None:
    monkeypatch.setattr(chats["byte_bpe"][0], "chat_template", template)
    with pytest.raises(DataError, match=f"^a.jsonl:1: the chat template {why}.* Use the"):
        encode(chats["byte_bpe"], conversation("하나", "둘", "셋", "넷"))


def test_an_answer_that_begins_with_a_lost_character_is_learnt_all_the_same(
    chats: dict[str, tuple[PreTrainedTokenizerFast, Special]],
) -> None:
    tokenizer, _ = chats["blog"]
    [encoded], _ = encode(chats["blog"], conversation("나는", "펲 우리는", "어제", "뷁"))
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.is_answer].tolist()) == ["우리는", END, END]


def test_the_bytes_of_the_answers_are_counted(chats: dict[str, tuple[PreTrainedTokenizerFast, Special]]) -> None:
    kept, _ = encode(chats["byte_bpe"], conversation("물음", "가나 a", "또", "🙂"), conversation("x", "y"))
    assert [row.answer_bytes for row in kept] == [3 + 3 + 1 + 1 + 4, 1]
    assert ConversationRows(kept, pad_id=1, sequence_length=64).raw_bytes == 13


# Rows


@pytest.mark.parametrize("name", PRESETS)
def test_rows_are_padded_and_labelled_like_a_slow_loop(
    chats: dict[str, tuple[PreTrainedTokenizerFast, Special]], name: str
) -> None:
    texts = sentences(40, seed=2)
    made = [conversation(*texts[i : i + 2 + 2 * (i % 2)]) for i in range(20)]
    kept, _ = encode(chats[name], *made)
    pad_id = chats[name][1].pad_id
    rows = ConversationRows(kept, pad_id=pad_id, sequence_length=10_000)
    chosen = np.array([3, 0, 7, 12])
    batch = rows.__getitems__(MicroBatch(0, chosen, 99))
    width = max(len(kept[row].input_ids) for row in chosen) - 1
    width = next(w for w in range(width, width + 8) if w % 8 == 0)
    for line, row in enumerate(chosen):
        ids, is_answer = kept[row].input_ids.tolist(), kept[row].is_answer.tolist()
        padding = width - len(ids) + 1
        assert batch["input_ids"][line].tolist() == ids[:-1] + [pad_id] * padding
        labels = [token if mine else IGNORED for token, mine in zip(ids[1:], is_answer[1:], strict=True)]
        assert batch["labels"][line].tolist() == labels + [IGNORED] * padding
        assert batch["position_ids"][line].tolist() == list(range(width))
        assert rows.num_labels[row] == sum(is_answer) == (batch["labels"][line] != IGNORED).sum()
    assert batch["num_labels"] == 99
    assert len(rows) == len(rows.num_labels) == 20


def test_the_end_of_a_turn_is_learnt_though_padding_has_the_same_id(tmp_path: Path) -> None:
    folder = save_preset("blog", tmp_path / "blog")
    tokens = read_special(folder)
    assert tokens.pad_id == tokens.eos_id
    kept, _ = encode((load_chat(folder), tokens), conversation("나는", "우리는"), conversation("책을 " * 9, "나는"))
    rows = ConversationRows(kept, pad_id=tokens.pad_id, sequence_length=64)
    labels = rows.__getitems__(MicroBatch(0, np.arange(2), 1))["labels"]
    assert (labels == tokens.eos_id).sum(dim=1).tolist() == [1, 1]
