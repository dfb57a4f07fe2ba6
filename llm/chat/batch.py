"""A file of prompts -> a file of answers, one JSON object a line; stopped, the same command goes on where it was.

Each line of the answers has its number, the prompt, the answer, its tokens, how it ended (eos, length or stop), and a
key of the model and the settings, by which a file of other answers is known.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm.chat.talker import Message, Talker
from llm.config.evaluation import Sampling
from llm.errors import ConfigError, DataError
from llm.run.console import log
from llm.run.files import digest_of
from llm.run.models import Model

ROLES = ("system", "user", "assistant")
Prompt = dict[str, Any]  # what a line of the answers begins with: line (of the input), key, messages


def read_prompts(path: Path, *, system: str | None, key: str) -> list[Prompt]:
    """The prompts of a text file, one a line, or of a jsonl file: prompt or messages in each record.

    Raises:
        ConfigError: there is no such file.
        DataError: a line is no prompt; with file and line.
    """
    if not path.is_file():
        raise ConfigError(f"--input={path} is no file. Give a .txt with a prompt on each line, or a .jsonl.")
    prompts: list[Prompt] = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            way = "Convert the file, for example with iconv -f cp949 -t utf-8."
            raise DataError(f"{path}:{number}: is not UTF-8. {way}") from None
        if text:
            is_record = path.suffix in (".jsonl", ".ndjson")
            messages = _of_record(text, f"{path}:{number}") if is_record else [{"role": "user", "content": text}]
            if system is not None and messages[0]["role"] != "system":
                messages = [{"role": "system", "content": system}, *messages]
            prompts.append({"line": number, "key": key, "messages": messages})
    if not prompts:
        raise DataError(f"{path}: there is no prompt in it. Write one on each line.")
    return prompts


def _of_record(line: str, place: str) -> list[Message]:
    try:
        record = json.loads(line)
        messages = record["messages"] if "messages" in record else [{"role": "user", "content": record["prompt"]}]
        said = [{"role": each["role"], "content": each["content"].strip()} for each in messages]
        is_right = said[-1]["role"] == "user" and all(each["role"] in ROLES and each["content"] for each in said)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        is_right = False
    if not is_right:
        raise DataError(
            f'{place}: is no prompt. Write {{"prompt": "..."}}, or "messages" whose last is the user\'s, each with '
            "role and content."
        )
    return said


def key_of(source: Model, settings: Sampling) -> str:
    """What answers depend on beside their prompts: the model's files and how tokens are drawn."""
    return digest_of({"model": source.digest, "settings": asdict(settings), "drawn": "by prompt and seed"})[:8]


def write_answers(
    talker: Talker, prompts: Sequence[Prompt], output: Path, *, settings: Sampling, batch_size: int
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
    if done := _done(output, prompts):
        log.info("%s has %d of %d answers; the rest is written", output, done, len(prompts))
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as file:
        for start in range(done, len(prompts), batch_size):
            chosen = slice(start, start + batch_size)
            answers = talker.answer_all(encoded[chosen], settings, seeds=seeds[chosen])
            for prompt, answer in zip(prompts[chosen], answers, strict=True):
                line = prompt | {"answer": answer.text.strip(), "tokens": answer.num_tokens, "end": answer.end}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            log.info("%d of %d answers in %s", min(start + batch_size, len(prompts)), len(prompts), output)


def _encode(talker: Talker, prompt: Prompt, settings: Sampling) -> list[int]:
    try:
        ids, left_out = talker.encode(prompt["messages"], settings)
    except ConfigError as error:
        raise DataError(f"line {prompt['line']} of the input: {error}") from None
    if left_out:
        log.info("line %d of the input: the oldest %d turns are left out", prompt["line"], left_out)
    return ids


def _done(output: Path, prompts: Sequence[Prompt]) -> int:
    """How many answers are there; a last line that was cut short is taken away.

    Raises:
        ConfigError: they are to other prompts, of another model or drawn otherwise.
    """
    whole = output.read_bytes() if output.exists() else b""
    *lines, torn = whole.split(b"\n")
    try:
        known = [prompt.items() <= json.loads(line).items() for line, prompt in zip(lines, prompts, strict=False)]
    except (ValueError, AttributeError):
        known = []
    if len(known) < len(lines) or not all(known) or (torn and not lines):
        raise ConfigError(
            f"--output={output} holds something else: other prompts, another model or other settings. Give another "
            "--output, or remove the file."
        )
    if torn:
        os.truncate(output, len(whole) - len(torn))
    return len(lines)
