"""The mistakes of docs/by-hand.md: each is made here, and what the page says is printed, is."""

import json
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
from peft import LoraModel

from llm.data import documents as documents_on_disk
from llm.data.shards import write_shards
from llm.errors import StoppedError, UserError
from llm.run.console import log
from llm.run.launch import stop_on_signal
from llm.run.runs import check_files, load
from tests.korean import documents
from tests.test_stages import run
from tests.tuned import folder_of, quick_peak, train_first, tuning_on, write_lines

assert quick_peak  # a fixture
DOCS = Path(__file__).parents[1] / "docs"
NO_END = (
    "{% for message in messages %}{% if message['role'] == 'user' %}질문: {{ message['content'] }}\n"
    "{% elif message['role'] == 'assistant' %}답변: {% generation %}{{ message['content'] }}{% endgeneration %}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}답변: {% endif %}"
)


def printed_by_page(name: str) -> list[str]:
    blocks = re.findall(r"^```text\n(.*?)^```$", (DOCS / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


class Lines(logging.Handler):
    """Every line of the log, and of the errors that are given to it."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def refused(self, action: Callable[[], object]) -> None:
        with pytest.raises((UserError, StoppedError)) as refused:
            action()
        self.said.append(f"error: {refused.value}")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """All that was said while each of the mistakes was made."""
    folder = tmp_path_factory.mktemp("by_hand")
    lines, texts = Lines(), ["\n".join(text.split(". ")) for text in documents(300)]
    log.addHandler(lines)
    with pytest.MonkeyPatch.context() as patch:
        outputs = train_first(folder, texts, words=["tokenizer.initial_alphabet=none"])
        to, read = f"outputs={outputs}", ["data=text", f"data.path={folder / 'text.jsonl'}"]
        base = folder_of(outputs, "pretrain")
        small = ["tokenizer.initial_alphabet=none", "tokenizer.vocab_size=340"]

        lines.refused(lambda: run("tokenizer", "tokenizer=blog", "tokenizer.allow_lossy=false", *read, *small[1:], to))

        template = folder / "no_end.jinja"
        template.write_text(NO_END, encoding="utf-8")
        tuning = ["base=first", *tuning_on(folder / "chats.jsonl"), f"chat_template={template}"]
        lines.refused(lambda: run("finetune", *tuning, to))

        one = write_lines(folder / "one.jsonl", [{"text": texts[0]}])
        lines.refused(lambda: run("documents", "data=text", f"data.path={one}", to))

        model = ["model=pretrained", f"model.path={base / 'model'}", "tokenizer=byte_bpe", small[1]]
        lines.refused(lambda: run("pretrain", *read, *model, to))

        lines.refused(lambda: _stopped_while_sharding(patch, [*read, *small, to]))
        run("shards", *read, *small, to, "data.num_workers=1")

        patch.setattr(LoraModel, "merge_and_unload", lambda self, **_: self.unload())
        lines.refused(lambda: run("export", "run=finetune/*", to))
        weights = base / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        lines.refused(lambda: check_files(load(base)))
    log.removeHandler(lines)
    yield lines.said


def _stopped_while_sharding(patch: pytest.MonkeyPatch, words: list[str]) -> None:
    """SIGTERM comes when the first shard is there."""
    patch.setattr(documents_on_disk, "FILE_BYTES", 4000)
    patch.setattr(import_module(write_shards.__module__), "LOG_SECONDS", -1)

    class Stop(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if re.match(r"1 of \d+ shards", record.getMessage()):
                os.kill(os.getpid(), signal.SIGTERM)

    log.addHandler(stop := Stop())
    try:
        with stop_on_signal():
            run("shards", *words, "data.num_workers=1")
    finally:
        log.removeHandler(stop)


@pytest.mark.parametrize("line", printed_by_page("by-hand.md"))
def test_what_the_page_says_is_printed_is_printed(line, printed):
    pattern = ".*".join(map(re.escape, line.split("…")))
    assert any(re.fullmatch(pattern, said.replace("\n", " / ")) for said in printed), json.dumps(printed, indent=1)


def test_the_page_says_the_same_in_korean():
    assert printed_by_page("by-hand.ko.md") == printed_by_page("by-hand.md")
