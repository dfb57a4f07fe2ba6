"""Talk to a run in the terminal: python -m llm.chat <run> [--prompt "..."]; the answer streams to stdout."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm import tokenizer
from llm.errors import ConfigError, one_line_errors
from llm.run import Run, candidates, load, log, start_logging

STAGES = ("finetune", "pretrain")  # where a name stands for both, the tuned model is meant


@dataclass(frozen=True)
class Talker:
    """A model and how it is spoken to."""

    model: Any
    words: Any  # tokenizers.Tokenizer
    chat: Any  # the same as transformers sees it
    special: tokenizer.Special
    sampling: Any  # llm.model.Sampling

    def answer(self, messages: list[dict[str, str]]) -> Iterator[str]:
        """The answer to the last message, in pieces of whole characters."""
        from llm.model import stream

        ids = self.chat.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        room = self.model.config.max_position_embeddings - self.sampling.max_new_tokens
        if len(ids) > room:
            log.warning("the prompt has %d tokens, of which the last %d fit", len(ids), room)
        return stream(self.model, ids, self.words, sampling=self.sampling, pad_id=self.special.pad_id)


def find_run(outputs: str, name_or_folder: str) -> Run:
    """A finished run to talk to, tuned or pretrained, by name or folder.

    Raises:
        ConfigError: no such run, several, or one that is not done.
    """
    if (Path(name_or_folder) / "run.json").is_file():
        found = [load(Path(name_or_folder))]
    else:
        runs = [run for stage in STAGES for run in candidates(outputs, stage)]
        found = [r for r in runs if name_or_folder in (r.path.name, r.record["name"])]
        found = [run for run in found if run.stage == found[0].stage]
        if not found:
            names = ", ".join(run.path.name for run in runs if run.is_done) or "none yet; make one with train.py"
            raise ConfigError(f"there is no run {name_or_folder} under {outputs}/ to talk to. Finished ones: {names}.")
    if len(found) > 1:
        folders = ", ".join(str(run.path) for run in found)
        raise ConfigError(f"{len(found)} runs are named {name_or_folder}: {folders}. Give one of these.")
    run = found[0]
    if run.stage not in STAGES:
        raise ConfigError(f"{run.path} is a {run.stage} run; only pretrain and finetune runs can talk.")
    if not run.is_done:
        raise ConfigError(f"{run.path} is {run.state}, not done. Start it again to finish it.")
    return run


def open_talker(run: Run, sampling: Any) -> Talker:
    """The run's model, with its adapter where it has one."""
    from llm import model as models

    folder = (run.parent("base") if run.stage == "finetune" else run).path / "model"
    model = models.load(folder)
    if run.stage == "finetune":
        model = models.load_adapter(model, run.path / "adapter")
    return Talker(
        model=model.eval(),
        words=tokenizer.load(folder),
        chat=tokenizer.load_chat(folder),
        special=tokenizer.special(folder),
        sampling=sampling,
    )


def say(talker: Talker, messages: list[dict[str, str]]) -> str:
    """Write the answer to stdout as it is made, and return it."""
    pieces = []
    for piece in talker.answer(messages):
        print(piece.lstrip() if not pieces else piece, end="", flush=True)
        pieces.append(piece)
    print(flush=True)
    return "".join(pieces).strip()


def converse(talker: Talker) -> None:
    """Read turns from the terminal until Ctrl-D or /quit; /new forgets what was said."""
    log.info("Write a message. /new begins anew, /quit or Ctrl-D ends.")
    messages: list[dict[str, str]] = []
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text == "/quit":
            return
        if text == "/new":
            messages = []
        elif found := special_in(text, talker.special):
            log.warning("%s is a control token of this model and cannot be said", found)
        elif text:
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": say(talker, messages)})


def special_in(text: str, special: tokenizer.Special) -> str | None:
    """The first control token that stands in a text, if any."""
    return next((token for token in special.tokens if token in text), None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.chat", description=__doc__)
    parser.add_argument("run", help="name or folder of a fine-tuning or pretraining run")
    parser.add_argument("--prompt", help="answer this and end; without it, talk (or read stdin where that is no terminal)")
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token each time")
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start_logging()
    with one_line_errors():
        run = find_run(arguments.outputs, arguments.run)
        log.info("talking to %s", run.path)
        prompt = arguments.prompt
        if prompt is None and not sys.stdin.isatty():
            prompt = sys.stdin.read().strip()
        if prompt is not None and not prompt.strip():
            raise ConfigError("the prompt is empty. Give --prompt a question.")
        from llm.model import Sampling

        sampling = Sampling(
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            seed=arguments.seed,
        )
        talker = open_talker(run, sampling)
        if prompt is None:
            converse(talker)
            return
        if found := special_in(prompt, talker.special):
            raise ConfigError(f"{found} is a control token of this model and cannot stand in a prompt. Remove it.")
        say(talker, [{"role": "user", "content": prompt}])


if __name__ == "__main__":
    main()
