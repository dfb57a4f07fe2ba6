"""A file of prompts -> a file of answers: equal to one by one, gone on with after a stop, never written over."""

import json
from pathlib import Path

import pytest

from llm.chat.batch import read_prompts, write_answers
from llm.chat.talker import Talker
from llm.config.evaluation import Sampling
from llm.errors import ConfigError, DataError
from tests.test_chat import outputs, talker  # noqa: F401  # fixtures

SETTINGS = Sampling(max_new_tokens=12, temperature=1.0, top_k=0, top_p=1.0)
TEXTS = ["주권은 누구에게 있나요?", "가", "나라의 이름은 무엇인가요?", "오늘 날씨", "하나"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def write(talker: Talker, source: Path, output: Path, **how: object) -> bytes:  # noqa: F811
    settings = {"settings": SETTINGS, "key": "k", "batch_size": 3} | how
    write_answers(talker, read_prompts(source, system=None), output, **settings)  # type: ignore[arg-type]
    return output.read_bytes()


def test_many_at_once_are_what_each_is_alone(talker: Talker, prompts: Path, tmp_path: Path) -> None:  # noqa: F811
    together = write(talker, prompts, tmp_path / "a.jsonl")
    assert together == write(talker, prompts, tmp_path / "b.jsonl", batch_size=1)
    lines = [json.loads(line) for line in together.splitlines()]
    assert [line["messages"][0]["content"] for line in lines] == TEXTS
    assert [line["line"] for line in lines] == [1, 3, 5, 7, 9]
    assert len({line["answer"] for line in lines}) > 2  # the draw is no constant


@pytest.mark.parametrize("cut", [0, 7, -1])
def test_a_stopped_file_goes_on_to_the_same_bytes(
    talker: Talker,  # noqa: F811
    prompts: Path,
    tmp_path: Path,
    cut: int,
) -> None:
    whole = write(talker, prompts, tmp_path / "a.jsonl")
    torn = b"".join(whole.splitlines(keepends=True)[:2]) + whole.splitlines(keepends=True)[2][: cut or None]
    (tmp_path / "b.jsonl").write_bytes(torn)
    assert write(talker, prompts, tmp_path / "b.jsonl") == whole
    assert write(talker, prompts, tmp_path / "b.jsonl") == whole  # and nothing is left to do


def test_other_answers_are_not_written_over(talker: Talker, prompts: Path, tmp_path: Path) -> None:  # noqa: F811
    output = tmp_path / "a.jsonl"
    before = write(talker, prompts, output)
    with pytest.raises(ConfigError, match=r"holds something else: other prompts, another model or other settings"):
        write(talker, prompts, output, key="other")
    prompts.write_text("다른 것\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"holds something else"):
        write(talker, prompts, output)
    assert output.read_bytes() == before
    output.write_bytes("내 글, 줄 끝이 없다".encode())
    with pytest.raises(ConfigError, match=r"holds something else"):
        write(talker, prompts, output)
    assert output.read_bytes() == "내 글, 줄 끝이 없다".encode()


def test_records_have_a_prompt_or_messages(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    turns = [{"role": "system", "content": "짧게"}, {"role": "user", "content": "나"}]
    path.write_text(
        json.dumps({"prompt": "가"}) + "\n" + json.dumps({"messages": turns}) + "\n",
        encoding="utf-8",
    )
    found = [messages for _, messages in read_prompts(path, system="길게")]
    head = {"role": "system", "content": "길게"}
    assert found == [
        [head, {"role": "user", "content": "가"}],
        turns,
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "\xea\xb0\x80"}\n{"text": "x"}\n', r"p.jsonl:2: is no prompt. Write"),
        (b"{\n", r"p.jsonl:1: is no prompt"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}\n', r"p.jsonl:1: is no prompt"),
        ('{"prompt": "가"}\n'.encode("cp949"), r"p.jsonl:1: is not UTF-8. Convert the file"),
        (b"\n\n", r"there is no prompt in it. Write one on each line"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(path, system=None)


def test_a_prompt_that_cannot_be_is_refused_before_the_first_is_answered(
    talker: Talker,  # noqa: F811
    prompts: Path,
    tmp_path: Path,
) -> None:
    prompts.write_text(f"가\n{'가' * 1000}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2 of the input: the prompt has .* Shorten it"):
        write(talker, prompts, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()
