"""Tokenizers side by side: python -m llm.tokenize <run>... "문장" shows the pieces, --report what they measured."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unicodedata import normalize

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from llm import tokenizer as tokenizers
from llm.config.data import DataConfig, DataKind
from llm.config.stages import MODEL_STAGES
from llm.data.files import open_files
from llm.data.records import Document, Rejected
from llm.errors import ConfigError, DataError, one_line_errors
from llm.run.console import output_console
from llm.run.files import write_json, write_text
from llm.run.models import own_folder
from llm.run.runs import Run, find_runs
from llm.run.tables import shown
from llm.tokenizer.fast import symbol_bytes
from llm.tokenizer.report import FIGURES
from llm.tokenizer.training import unknown_token

COLOURS = ("#7cc4ff", "#ffd166", "#9be564", "#ff9f9f", "#d5a6ff", "#7fe0d0")  # of pieces, one after the other
UNKNOWN_COLOUR = "#ff3b3b"
PAGE_COLUMNS = 160  # characters of a line of the HTML page
STAGES = ("tokenizer", *MODEL_STAGES)  # whose runs keep a tokenizer
MARKS = str.maketrans({" ": "▁", "\n": "⏎", "\t": "⇥", "\r": "␍"})  # white space that a reader can see


@dataclass(frozen=True)
class Named:
    """A tokenizer and the run that it is from."""

    name: str
    run: Run
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Piece:
    """A token as a reader sees it."""

    text: str
    token_id: int
    is_unknown: bool


def find_tokenizers(outputs: str, names: list[str]) -> list[Named]:
    """The tokenizers of runs, by name, folder or glob; of several stages with one name, the tokenizer run itself.

    Raises:
        ConfigError: a run that is not there, is not done, or has no tokenizer.
    """
    found: dict[Path, Named] = {}
    for name in names:
        runs = [run for run in find_runs(outputs, name) if run.is_done]
        own = [run for run in runs if run.stage == "tokenizer"]
        usable = own or [run for run in runs if run.stage in STAGES]
        if not usable:
            raise ConfigError(
                f"{name} has no finished run with a tokenizer. Make one with python train.py stage=tokenizer."
            )
        for run in usable:
            folder = own_folder(run)
            found[folder.resolve()] = Named(run.path.name, run, tokenizers.load(folder))
    return list(found.values())


def pieces(tokenizer: Tokenizer, text: str) -> list[Piece]:
    """The tokens of a text, white space marked; bytes that are no whole character as hex."""
    unknown = unknown_token(tokenizer)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    bytes_of = _byte_level(tokenizer)
    return [
        Piece(_readable(token, bytes_of), token_id, token == unknown)
        for token, token_id in zip(encoding.tokens, encoding.ids, strict=True)
    ]


def _byte_level(tokenizer: Tokenizer) -> dict[str, int] | None:
    """The symbols of a byte-level vocabulary, each with its byte; None for another tokenizer."""
    if '"ByteLevel"' not in json.dumps(json.loads(tokenizer.to_str())["decoder"]):
        return None
    return symbol_bytes()


def _readable(token: str, bytes_of: dict[str, int] | None) -> str:
    if bytes_of is not None and all(symbol in bytes_of for symbol in token):
        raw = bytes(bytes_of[symbol] for symbol in token)
        try:
            token = raw.decode()
        except UnicodeDecodeError:
            return f"<{raw.hex(' ')}>"
    return normalize("NFC", token).translate(MARKS)


def lost(tokenizer: Tokenizer, text: str) -> str:
    """The characters of a text that do not come back, each as often as it is lost."""
    back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)
    return "".join(tokenizers.lost_characters(text, back).elements()).translate(MARKS)


# In the terminal


def table_of_pieces(named: list[Named], text: str, *, coloured: bool) -> Table:
    """A row for each tokenizer: its name, how many tokens, the tokens, and what of the text is lost."""
    table = Table("tokenizer", "tokens", "pieces", "lost", highlight=False)
    table.columns[0].no_wrap = True
    for one in named:
        found = pieces(one.tokenizer, text)
        table.add_row(Text(one.name), str(len(found)), _line(found, coloured=coloured), Text(lost(one.tokenizer, text)))
    return table


def _line(found: list[Piece], *, coloured: bool) -> Text:
    if not coloured:
        return Text("|".join(piece.text for piece in found))
    return Text.assemble(*((piece.text, f"black on {_colour(number, piece)}") for number, piece in enumerate(found)))


def _colour(number: int, piece: Piece) -> str:
    return UNKNOWN_COLOUR if piece.is_unknown else COLOURS[number % len(COLOURS)]


# As a page


def page(named: list[Named], text: str) -> str:
    """The same as an HTML page, coloured; it loads nothing."""
    console = Console(record=True, file=StringIO(), width=PAGE_COLUMNS)
    console.print(Text(text), table_of_pieces(named, text, coloured=True))
    return console.export_html(inline_styles=True)


# What they measured


def reports(named: list[Named], path: str | None) -> dict[str, dict[str, dict[str, Any]]]:
    """For each tokenizer, the report on its held-out text, and on the text at `path` (out of domain) if one is given.

    Raises:
        ConfigError: a run that is no tokenizer run: it has no report.
        DataError: a record at `path` cannot be used.
    """
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    for one in named:
        if one.run.stage != "tokenizer":
            raise ConfigError(f"{one.name} is a {one.run.stage} run, which has no report. Give its tokenizer's run.")
        measured[one.name] = {"held-out": one.run.results}
        if path is not None:
            kind = tokenizers.installed_analyser()
            measured[one.name][path] = asdict(tokenizers.report(one.tokenizer, texts(path), morphemes=kind))
    return measured


def texts(path: str) -> Iterator[str]:
    """All documents of the files that a path names."""
    files = open_files(DataConfig(name="text", kind=DataKind.text, path=path))
    for record in files.records():
        if isinstance(record, Rejected) and record.fix:
            raise DataError(str(record))
        if isinstance(record, Document):
            yield record.text


def table_of_reports(measured: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """A row for each number, a column for each tokenizer; numbers in and out of domain with a slash between."""
    wheres = list(next(iter(measured.values())))
    table = Table(" / ".join(wheres), *measured, highlight=False)
    for key, label in FIGURES.items():
        cells = [[_cell(report.get(key)) for report in by_place.values()] for by_place in measured.values()]
        table.add_row(label, *(" / ".join(dict.fromkeys(cell)) for cell in cells))
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else shown(value)


def notes(named: list[Named]) -> list[str]:
    """What a reader of the numbers must know."""
    identities = [one.run.record["identity"] for one in named]
    corpora = {json.dumps([identity["parents"], identity["settings"]["data"]]) for identity in identities}
    if len(corpora) > 1:
        return ["They were not measured on the same held-out text. Give one text to all with --on."]
    return []


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.tokenize", description=__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="run", help='names, folders or globs of runs; then the text: "문장"'
    )
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for")
    parser.add_argument("--html", metavar="FILE", help="write the pieces as a page, too")
    parser.add_argument("--report", action="store_true", help="show what the runs measured; no text is given")
    parser.add_argument("--on", metavar="PATH", help="with --report: measure on these txt or jsonl files, too")
    parser.add_argument("--json", metavar="FILE", help="with --report: write all numbers, too")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        _show_reports(arguments) if arguments.report else _show_pieces(arguments)


def _show_pieces(arguments: argparse.Namespace) -> None:
    *names, text = arguments.words
    if not names:
        raise ConfigError(f'give a run and a text: python -m llm.tokenize {text} "문장". To see its numbers: --report.')
    if arguments.on or arguments.json:
        raise ConfigError("--on and --json go with --report. Add it, and give runs only.")
    named = find_tokenizers(arguments.outputs, names)
    console = output_console()
    console.print(table_of_pieces(named, text, coloured=console.is_terminal))
    if arguments.html:
        write_text(Path(arguments.html), page(named, text))
        print(f"wrote {arguments.html}", file=sys.stderr)


def _show_reports(arguments: argparse.Namespace) -> None:
    if arguments.html:
        raise ConfigError("--html shows the pieces of a text. Give one in place of --report.")
    named = find_tokenizers(arguments.outputs, arguments.words)
    measured = reports(named, arguments.on)
    console = output_console()
    console.print(table_of_reports(measured))
    for note in notes(named):
        console.print(Text(note))
    if arguments.json:
        write_json(Path(arguments.json), measured)
        print(f"wrote {arguments.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
