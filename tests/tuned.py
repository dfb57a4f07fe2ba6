"""A tiny pretraining and a fine-tuning of it, both named first, for the tests of what is done to them afterwards."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import pytest

from tests.test_stages import run

STEPS = ["trainer.max_steps=4", "trainer.sample_tokens=4", "logger=local"]
SHAPE = ["model.num_layers=1", "model.num_heads=2", "model.hidden_size=16", "data.batch_size=4"]
SPLIT = ["data.held_out_share=0.2", "data.sequence_length=64"]
CHATS = [{"question": f"{n}번 사람은 어디에 있나요?", "answer": f"{n}번 사람은 학교에 있다."} for n in range(60)]


@pytest.fixture(autouse=True, scope="module")
def quick_peak() -> Iterator[None]:
    """Where a test file imports it, the machine is not measured before every tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("llm.trainer.fit"), "peak_flops", lambda *_: (1e9, "assumed"))
        yield


def write_lines(path: Path, records: Iterable[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in records), encoding="utf-8")
    return path


def train_first(folder: Path, texts: Iterable[str], *, words: Sequence[str], tuning: Sequence[str] = ()) -> Path:
    """The outputs of both; beside them text.jsonl and chats.jsonl. `words` are settings of the pretraining."""
    text = write_lines(folder / "text.jsonl", ({"text": text} for text in texts))
    outputs = folder / "outputs"
    to_begin = ["data=text", f"data.path={text}", f"outputs={outputs}", "name=first"]
    run("pretrain", *to_begin, *SPLIT, *SHAPE, *STEPS, "tokenizer.vocab_size=330", *words)
    write_lines(folder / "chats.jsonl", CHATS)
    run("finetune", *tuning_on(folder / "chats.jsonl"), f"outputs={outputs}", "base=first", "name=first", *tuning)
    return outputs


def tuning_on(chats: Path) -> list[str]:
    return ["data=conversations", f"data.path={chats}", *SPLIT, *STEPS]


def copy_of(outputs: Path, target: Path, *, without: str = "nothing") -> Path:
    """A copy of runs, but for one stage's."""
    return Path(shutil.copytree(outputs, target, ignore=shutil.ignore_patterns(without)))


def folder_of(outputs: Path, stage: str) -> Path:
    (found,) = (outputs / stage).iterdir()
    return found
