"""Talk to a run in the terminal: python -m llm.chat <run> [--prompt "..."]; the answer streams to stdout.

<run> may also be the folder of an exported model, or any other in Hugging Face format.
"""

import argparse
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from llm.chat.settings import DEFAULTS, NAMES, check_room, flag, read_settings
from llm.chat.talker import open_talker
from llm.chat.terminal import Conversation, converse
from llm.config.sampling import Sampling
from llm.errors import INTERRUPTED_EXIT_CODE, ConfigError, fail, one_line_errors
from llm.run.console import log, start_logging
from llm.run.models import Model, find_model

PORT = 8000
BATCH_SIZE = 16


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


def _silence_libraries() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _parse(argv: list[str] | None) -> argparse.Namespace:
    defaults = DEFAULTS
    parser = argparse.ArgumentParser(prog="python -m llm.chat", description=__doc__)
    parser.add_argument("run", help="a pretrained or tuned run by name or folder, a Hugging Face folder, or a hub id")
    parser.add_argument("--prompt", help="answer this and end; without it, talk, or read stdin if that is no terminal")
    parser.add_argument("--system", help="the system prompt, which stands before the conversation")
    parser.add_argument("--compare", metavar="RUN", help="a second model, whose answers stand beside the first's")
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for")
    drawing = parser.add_argument_group("how the next token is chosen")
    drawing.add_argument("--max-new-tokens", type=int, default=defaults.max_new_tokens)
    drawing.add_argument("--temperature", type=float, default=defaults.temperature, help="0: the likeliest each time")
    drawing.add_argument("--top-p", type=float, default=defaults.top_p)
    drawing.add_argument("--top-k", type=int, default=defaults.top_k, help="0 draws from all tokens")
    drawing.add_argument("--repetition-penalty", type=float, default=defaults.repetition_penalty, help="1 is none")
    drawing.add_argument("--stop", action="append", help="a text that ends the answer; may be given several times")
    drawing.add_argument("--seed", type=int, default=defaults.seed)
    many = parser.add_argument_group("many prompts at once")
    many.add_argument("--input", metavar="FILE", help="a prompt on each line; or .jsonl with prompt or messages")
    many.add_argument("--output", metavar="FILE", help="the answers as jsonl; the same command goes on with them")
    many.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="prompts at once; changes no answer")
    page = parser.add_argument_group("a page in the browser, on this machine alone")
    page.add_argument("--serve", action="store_true", help="needs the extra serve: pip install -e '.[serve]'")
    page.add_argument("--port", type=int, help=f"0 takes any free one ({PORT})")
    return parser.parse_args(argv)


def _check_ways(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    ways = [f"--{name}" for name in ("prompt", "input", "serve") if getattr(arguments, name)]
    if len(ways) > 1:
        raise ConfigError(f"{' and '.join(ways)} are different ways to talk. Give one of them.")
    if (arguments.input is None) != (arguments.output is None):
        raise ConfigError("--input and --output go together: prompts from one file, answers to another.")
    if arguments.input and arguments.compare:
        raise ConfigError("--compare is for conversations. Answer --input with each run by itself, to two files.")
    if arguments.port is not None and not arguments.serve:
        raise ConfigError(f"--port={arguments.port} is of the page. Add --serve, or leave it out.")
    if arguments.port is not None and not 0 <= arguments.port < 2**16:
        raise ConfigError(f"--port={arguments.port} is out of range. Set it from 0 to 65535.")
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch-size={arguments.batch_size} is out of range. Set it to 1 or more.")


def _settings(arguments: argparse.Namespace, sources: list[Model]) -> Sampling:
    values = {name: getattr(arguments, name) for name in NAMES}
    settings = read_settings(values, key=flag)
    for source in sources:
        check_room(settings, positions=source.positions, name=source.path.name, key=flag)
    return settings


def _talk(arguments: argparse.Namespace) -> None:
    _check_ways(arguments)
    if arguments.serve:
        from llm.chat.server import require_server

        require_server()
    names = [arguments.run, arguments.compare] if arguments.compare else [arguments.run]
    sources = [find_model(arguments.outputs, name) for name in names]
    settings = _settings(arguments, sources)
    if arguments.serve:
        from llm.chat.server import serve

        serve(sources, settings, system=arguments.system, port=PORT if arguments.port is None else arguments.port)
    elif arguments.input:
        _answer_file(arguments, sources[0], settings)
    else:
        _talk_here(arguments, sources, settings)


def _answer_file(arguments: argparse.Namespace, source: Model, settings: Sampling) -> None:
    from llm.chat.batch import key_of, read_prompts, write_answers

    prompts = read_prompts(Path(arguments.input), system=arguments.system)
    log.info("talking to %s", source.path)
    _silence_libraries()
    write_answers(
        open_talker(source),
        prompts,
        Path(arguments.output),
        settings=settings,
        key=key_of(source, settings),
        batch_size=arguments.batch_size,
    )


def _talk_here(arguments: argparse.Namespace, sources: list[Model], settings: Sampling) -> None:
    prompt = read_prompt(arguments)
    log.info("talking to %s", " and ".join(str(source.path) for source in sources))
    _silence_libraries()
    conversation = Conversation([open_talker(source) for source in sources], settings, arguments.system)
    if prompt is not None:
        conversation.ask(prompt)
        return
    with suppress(ImportError):  # not on every platform; it edits lines and recalls them
        import_module("readline")
    converse(conversation)


def main(argv: list[str] | None = None) -> None:
    arguments = _parse(argv)
    start_logging()
    with one_line_errors():
        try:
            _talk(arguments)
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED_EXIT_CODE)
