"""A file of prompts -> a file of answers, one JSON object a line; stopped, the same command goes on where it was.

Each line of the answers has its number, the prompt, the answer, its tokens, how it ended (eos, length or stop), and a
key of the model and the settings, by which a file of other answers is known.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm.chat.talker import Message, Talker
from llm.config.sampling import Sampling
from llm.errors import ConfigError, DataError
from llm.run.console import log
from llm.run.files import digest_of, sha256_of
from llm.run.models import Model

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Prompt:
    """A line of the input."""

    line: int
    messages: list[Message]


def read_prompts(path: Path, *, system: str | None) -> list[Prompt]:
    """The prompts of a text file, one a line, or of a jsonl file: prompt, question or messages in each record.

    Raises:
        ConfigError: there is no such file.
        DataError: a line is no prompt; with file and line.
    """
    if not path.is_file():
        raise ConfigError(f"--input={path} is no file. Give a .txt with a prompt on each line, or a .jsonl.")
    read = _of_record if path.suffix in (".jsonl", ".ndjson") else _of_text
    prompts, empty = [], 0
    for line, text in _lines(path):
        if not text.strip():
            empty += 1
            continue
        messages = read(text.strip(), f"{path}:{line}")
        if system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        prompts.append(Prompt(line, messages))
    if empty:
        log.info("%s: %d empty lines are passed over", path, empty)
    if not prompts:
        raise DataError(f"{path}: there is no prompt in it. Write one on each line.")
    return prompts


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(
                    f"{path}:{number}: is not UTF-8. Convert the file, for example with iconv -f cp949 -t utf-8."
                ) from None


def _of_text(text: str, place: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _of_record(text: str, place: str) -> list[Message]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: is no JSON ({error}). Write one object on each line.") from None
    record = record if isinstance(record, dict) else {}
    question = record.get("prompt", record.get("question"))
    messages = record.get("messages", [{"role": "user", "content": question}])
    is_right = isinstance(messages, list) and bool(messages) and all(_is_message(message) for message in messages)
    if not is_right or messages[-1]["role"] != "user":
        keys = ", ".join(record) or "none"
        raise DataError(
            f'{place}: needs "prompt" (a text), or "messages" whose last is the user\'s, each with role and content '
            f"(keys: {keys})."
        )
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in ROLES
        and isinstance(message.get("content"), str)
        and bool(message["content"].strip())
    )


def key_of(source: Model, settings: Sampling) -> str:
    """What answers depend on beside their prompts: the model's files and how tokens are drawn."""
    if source.run is not None:
        model: Any = source.run.digest
    else:
        folders = sorted({folder for folder in (source.weights, source.adapter) if folder})
        files = sorted(path for folder in folders for path in folder.iterdir() if path.is_file())
        model = [[path.name, sha256_of(path)] for path in files]
    return digest_of({"model": model, "settings": asdict(settings), "drawn": "by prompt and seed"})[:8]


def write_answers(
    talker: Talker, prompts: Sequence[Prompt], output: Path, *, settings: Sampling, key: str, batch_size: int
) -> None:
    """Write the answers that `output` has not yet.

    Every prompt is checked before the first is answered. A prompt has the answer of a conversation under the same seed,
    said again that under the next one, and so on: neither the size of a batch nor a stop changes an answer.

    Raises:
        ConfigError: `output` has other answers.
        DataError: a prompt cannot be; with its line.
    """
    encoded = [_encode(talker, prompt, settings) for prompt in prompts]
    said: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for ids in map(tuple, encoded):
        seeds.append(settings.seed + said[ids])
        said[ids] += 1
    done = _done(output, prompts, key)
    if done:
        log.info("%s has %d of %d answers; the rest is written", output, done, len(prompts))
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as file:
        for start in range(done, len(prompts), batch_size):
            chosen = slice(start, start + batch_size)
            answers = talker.generate(encoded[chosen], settings, seeds=seeds[chosen])
            for prompt, answer in zip(prompts[chosen], answers, strict=True):
                line = {"line": prompt.line, "key": key, "messages": prompt.messages, "answer": answer.text.strip()}
                line |= {"tokens": answer.num_tokens, "end": answer.end}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            log.info("%d of %d answers", min(start + batch_size, len(prompts)), len(prompts))
    log.info("%d answers in %s", len(prompts), output)


def _encode(talker: Talker, prompt: Prompt, settings: Sampling) -> list[int]:
    try:
        ids, left_out = talker.encode(prompt.messages, settings)
    except ConfigError as error:
        raise DataError(f"line {prompt.line} of the input: {error}") from None
    if left_out:
        log.info("line %d of the input: the oldest %d turns are left out", prompt.line, left_out)
    return ids


def _done(output: Path, prompts: Sequence[Prompt], key: str) -> int:
    """How many answers are there; a last line that was cut short is taken away.

    Raises:
        ConfigError: they are to other prompts, of another model or drawn otherwise.
    """
    if not output.exists():
        return 0
    if not output.is_file():
        raise ConfigError(f"--output={output} is no file. Name one.")
    whole = output.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    lines = kept.split(b"\n")[:-1]
    is_ours = len(lines) <= len(prompts) and all(
        _is_of(line, prompt, key) for line, prompt in zip(lines, prompts, strict=False)
    )
    if not is_ours or (whole and not lines and not whole.startswith(b'{"line"')):
        raise ConfigError(
            f"--output={output} holds something else: other prompts, another model or other settings. Give another "
            "--output, or remove the file."
        )
    if len(kept) < len(whole):
        os.truncate(output, len(kept))
    return len(lines)


def _is_of(line: bytes, prompt: Prompt, key: str) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    expected = {"line": prompt.line, "key": key, "messages": prompt.messages}
    return isinstance(record, dict) and all(record.get(name) == value for name, value in expected.items())
