"""Talk to a run in the terminal: python -m llm.chat <run> [--prompt "..."]; the answer streams to stdout."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm import tokenizer
from llm.errors import INTERRUPTED_EXIT_CODE, ConfigError, fail, one_line_errors
from llm.run import Run, candidates, load, log, positions_of, start_logging, weights_of

if TYPE_CHECKING:  # torch and transformers take seconds, which a mistyped name need not wait for
    from llm.model import Sampling

STAGES = ("finetune", "pretrain")  # where a name stands for both, the tuned model is meant
Message = dict[str, str]


@dataclass(frozen=True)
class Talker:
    """A model and how it is spoken to."""

    model: Any
    words: Any  # tokenizers.Tokenizer
    chat: Any  # the same as transformers sees it
    special: tokenizer.Special
    sampling: "Sampling"
    positions: int  # tokens that prompt and answer may take together

    @property
    def room(self) -> int:
        """Tokens that a prompt may have."""
        return self.positions - self.sampling.max_new_tokens

    def encode(self, messages: list[Message]) -> list[int]:
        """The token ids of a conversation, up to where the answer begins.

        Raises:
            ConfigError: the last message has the text of a special token, or alone is longer than the model's room.
        """
        _check_text(messages[-1]["content"], self.special)
        ids = self._ids(messages)
        dropped = 0
        while len(ids) > self.room and len(messages) > 1:
            messages, dropped = messages[2:], dropped + 1
            ids = self._ids(messages)
        if len(ids) > self.room:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens, but of the model's {self.positions} there are {self.room} beside "
                f"--max-new-tokens={self.sampling.max_new_tokens}. Shorten it{self._or_lower(len(ids))}."
            )
        if dropped:
            log.info("the oldest %d turns are left out: a prompt may have %d tokens", dropped, self.room)
        return ids

    def answer(self, messages: list[Message]) -> Iterator[str]:
        """The answer to the last message, in pieces of whole characters; each turn has a seed of its own."""
        from llm.model import stream

        sampling = replace(self.sampling, seed=self.sampling.seed + len(messages) // 2)
        return stream(self.model, self.encode(messages), self.words, sampling=sampling, pad_id=self.special.pad_id)

    def _ids(self, messages: list[Message]) -> list[int]:
        return list(
            self.chat.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)[
                "input_ids"
            ]
        )

    def _or_lower(self, num_tokens: int) -> str:
        left = self.positions - num_tokens
        return f" or set --max-new-tokens={left} or less" if left > 0 else ""


def find_run(outputs: str, name_or_folder: str) -> Run:
    """A finished run to talk to, tuned or pretrained, by folder, folder's name or name.

    Raises:
        ConfigError: no such run, several, or one that is not done.
    """
    folders = [path for path in (Path(name_or_folder), Path(outputs, name_or_folder)) if (path / "run.json").is_file()]
    matches = [load(folders[0])] if folders else _named(outputs, name_or_folder)
    done = [run for run in matches if run.is_done] or matches
    if {run.stage for run in done} == set(STAGES):
        done = [run for run in done if run.stage == STAGES[0]]
        log.info("%s is a pretrained and a fine-tuned run; the fine-tuned one answers", name_or_folder)
    if len(done) > 1:
        paths = ", ".join(str(run.path) for run in done)
        raise ConfigError(f"{len(done)} {done[0].stage} runs are named {name_or_folder}: {paths}. Give one of these.")
    run = done[0]
    if run.stage not in STAGES:
        raise ConfigError(f"{run.path} is a {run.stage} run. Only pretrain and finetune runs can talk.")
    if not run.is_done:
        raise ConfigError(f"{run.path} is {run.state}, not done. Start it again to finish it.")
    return run


def _named(outputs: str, name: str) -> list[Run]:
    runs = [run for stage in STAGES for run in candidates(outputs, stage)]
    if matches := [r for r in runs if r.path.name == name] or [r for r in runs if r.record["name"] == name]:
        return matches
    finished = ", ".join(f"{run.stage}/{run.path.name}" for run in runs if run.is_done)
    listed = f"Finished ones: {finished}." if finished else "There is none yet: make one with python train.py."
    raise ConfigError(f"there is no pretrain or finetune run {name} under {outputs}/. {listed}")


def open_talker(run: Run, sampling: "Sampling") -> Talker:
    """The run's model, with its adapter where it has one.

    Raises:
        DamagedError: a file of it is missing, or is not what it was.
    """
    from llm import model as models

    weights = weights_of(run)
    model, folder = models.load(weights.model), weights.tokenizer
    if weights.adapter:
        model = models.load_adapter(model, weights.adapter)
    return Talker(
        model=model.eval(),
        words=tokenizer.load(folder),
        chat=tokenizer.load_chat(folder),
        special=tokenizer.special(folder),
        sampling=sampling,
        positions=weights.positions,
    )


def say(talker: Talker, messages: list[Message]) -> str:
    """Write the answer to stdout as it is made, and return it."""
    text = ""
    for piece in talker.answer(messages):
        piece = piece if text else piece.lstrip()  # an answer starts after a space
        print(piece, end="", flush=True)
        text += piece
    print(flush=True)
    if not text:
        log.info("the model ended its answer at once")
    return text.rstrip()


def converse(talker: Talker, read: Callable[[str], str] = input) -> None:
    """Take turns with a person until Ctrl-D or /quit; /new forgets what was said."""
    log.info("Write a message. /new begins anew, /quit or Ctrl-D ends.")
    messages: list[Message] = []
    while (text := _next_message(read)) is not None:
        if text == "/new":
            messages = []
            log.info("begun anew")
        elif text:
            question = {"role": "user", "content": text}
            try:
                answer = say(talker, [*messages, question])
            except ConfigError as error:  # of this message: the next one may be right
                log.warning("%s", error)
                continue
            messages += [question, {"role": "assistant", "content": answer}]


def _next_message(read: Callable[[str], str]) -> str | None:
    """What the person writes; None where it is the end."""
    try:
        text = read("> " if sys.stdout.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    except UnicodeDecodeError:  # half a syllable, after a deletion in a terminal that deletes bytes
        log.warning("the line is not UTF-8; write it again")
        return ""
    return None if text == "/quit" else text


def read_prompt(arguments: argparse.Namespace) -> str | None:
    """The prompt of the command line, else what stdin holds; None where a person sits there.

    Raises:
        ConfigError: it is empty or no UTF-8.
    """
    prompt: str | None = arguments.prompt
    try:
        if prompt is None and not sys.stdin.isatty():
            prompt = sys.stdin.read()
        if prompt is None:
            return None
        prompt.encode()  # a command line's broken bytes come as lone surrogates
    except UnicodeError:
        raise ConfigError("the prompt is not UTF-8. Convert it, for example with iconv -f cp949 -t utf-8.") from None
    if not prompt.strip():
        raise ConfigError('the prompt is empty. Write one: --prompt "..."')
    return prompt.strip()


def _check_text(text: str, special: tokenizer.Special) -> None:
    for token in special.tokens:
        if token in text:
            raise ConfigError(f"{token} is a special token of the model and cannot stand in a prompt. Take it out.")


def _check_settings(arguments: argparse.Namespace, run: Run) -> None:
    """Refuse, before the model is loaded, what it cannot do."""
    if not 0 <= arguments.temperature < float("inf"):
        raise ConfigError(f"--temperature={arguments.temperature} is out of range. Set it to 0 or more, such as 0.7.")
    if not 0 < arguments.top_p <= 1:
        raise ConfigError(f"--top-p={arguments.top_p} is out of range. Set it above 0 and up to 1, such as 0.95.")
    positions = positions_of(run)
    if not 0 < arguments.max_new_tokens < positions:
        raise ConfigError(
            f"--max-new-tokens={arguments.max_new_tokens} is out of range: prompt and answer share {positions} tokens "
            f"in {run.path.name}. Set it to {positions // 2} or less."
        )


def _silence_libraries() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m llm.chat", description=__doc__)
    parser.add_argument("run", help="name or folder of a fine-tuning or pretraining run")
    parser.add_argument("--prompt", help="answer this and end; without it, talk, or read stdin if that is no terminal")
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token each time")
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def _talk(arguments: argparse.Namespace) -> None:
    run = find_run(arguments.outputs, arguments.run)
    _check_settings(arguments, run)
    prompt = read_prompt(arguments)
    log.info("talking to %s", run.path)
    from llm.model import Sampling

    _silence_libraries()
    sampling = Sampling(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    talker = open_talker(run, sampling)
    if prompt is not None:
        say(talker, [{"role": "user", "content": prompt}])
        return
    with suppress(ImportError):  # not on every platform; it edits lines and recalls them
        import_module("readline")
    converse(talker)


def main(argv: list[str] | None = None) -> None:
    arguments = _parse(argv)
    start_logging()
    with one_line_errors():
        try:
            _talk(arguments)
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED_EXIT_CODE)


if __name__ == "__main__":
    main()
