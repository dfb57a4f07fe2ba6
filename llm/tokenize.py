"""Tokenizers side by side: python -m llm.tokenize <run>... "문장" shows the pieces, --report what they measured."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from llm.config.data import DataConfig, DataKind
from llm.config.stages import MODEL_STAGES
from llm.data.files import find_files, read_files
from llm.data.records import Document, Rejected
from llm.errors import ConfigError, DataError, one_line_errors
from llm.run.console import output_console, shown
from llm.run.files import write_json
from llm.run.models import own_folder
from llm.run.runs import Run, find_runs
from llm.tokenizer.folder import load_tokenizer
from llm.tokenizer.report import FIGURES, lost_characters, measure
from llm.tokenizer.training import installed_analyser, unknown_token

COLOURS = ("#7cc4ff", "#ffd166", "#9be564", "#ff9f9f", "#d5a6ff", "#7fe0d0")  # of pieces, one after the other
UNKNOWN_COLOUR = "#ff3b3b"
STAGES = ("tokenizer", *MODEL_STAGES)  # whose runs keep a tokenizer
MARKS = str.maketrans({" ": "▁", "\n": "⏎", "\t": "⇥", "\r": "␍"})  # white space that a reader can see


@dataclass(frozen=True)
class Named:
    """A tokenizer and the run that it is from."""

    run: Run
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        return self.run.path.name


def find_tokenizers(outputs: str, names: list[str]) -> list[Named]:
    """The tokenizers of runs, by name, folder or glob; of several stages with one name, the tokenizer run itself.

    Raises:
        ConfigError: a run that is not there, is not done, or has no tokenizer.
    """
    found: dict[Path, Named] = {}
    for name in names:
        runs = [run for run in find_runs(outputs, name) if run.is_done and run.stage in STAGES]
        if not runs:
            raise ConfigError(
                f"{name} has no finished run with a tokenizer. Make one with python train.py stage=tokenizer."
            )
        for run in [run for run in runs if run.stage == "tokenizer"] or runs:
            folder = own_folder(run)
            found[folder.resolve()] = Named(run, load_tokenizer(folder))
    return list(found.values())


# Pieces


def pieces(tokenizer: Tokenizer, text: str) -> list[tuple[str, bool]]:
    """(token as a reader sees it, whether it is the unknown one) of each token of a text.

    White space is marked, and bytes that are no whole character are in hex.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    is_byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str())["decoder"])
    bytes_of = {symbol: byte for byte, symbol in bytes_to_unicode().items()} if is_byte_level else {}
    unknown = unknown_token(tokenizer)
    tokens = tokenizer.encode(text, add_special_tokens=False).tokens
    return [(_readable(token, bytes_of), token == unknown) for token in tokens]


def _readable(token: str, bytes_of: dict[str, int]) -> str:
    """A token of a byte-level vocabulary by the bytes of its symbols, of any other as it stands there."""
    if all(symbol in bytes_of for symbol in token):
        raw = bytes(bytes_of[symbol] for symbol in token)
        try:
            token = raw.decode()
        except UnicodeDecodeError:
            return f"<{raw.hex(' ')}>"
    return normalize("NFC", token).translate(MARKS)


def table_of_pieces(named: list[Named], text: str, *, coloured: bool) -> Table:
    """A row for each tokenizer: its name, how many tokens, the tokens, and what of the text is lost."""
    table = Table("tokenizer", "tokens", "pieces", "lost", highlight=False)
    table.columns[0].no_wrap = True
    for each in named:
        found = pieces(each.tokenizer, text)
        line = _coloured(found) if coloured else Text("|".join(piece for piece, _ in found))
        back = each.tokenizer.decode(each.tokenizer.encode(text, add_special_tokens=False).ids)
        lost = "".join(lost_characters(text, back).elements()).translate(MARKS)
        table.add_row(Text(each.name), str(len(found)), line, Text(lost))
    return table


def _coloured(found: list[tuple[str, bool]]) -> Text:
    colours = (UNKNOWN_COLOUR if is_unknown else COLOURS[n % len(COLOURS)] for n, (_, is_unknown) in enumerate(found))
    return Text.assemble(*((piece, f"black on {colour}") for (piece, _), colour in zip(found, colours, strict=True)))


# What they measured


def reports(named: list[Named], path: str | None) -> dict[str, dict[str, dict[str, Any]]]:
    """For each tokenizer, the report on its held-out text, and on the text at `path` (out of domain) if one is given.

    Raises:
        ConfigError: a run that is no tokenizer run: it has no report.
        DataError: a record at `path` cannot be used.
    """
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    for each in named:
        if each.run.stage != "tokenizer":
            raise ConfigError(f"{each.name} is a {each.run.stage} run, which has no report. Give its tokenizer's run.")
        measured[each.name] = {"held-out": each.run.results}
        if path is not None:
            kind = installed_analyser()
            measured[each.name][path] = asdict(measure(each.tokenizer, texts(path), morphemes=kind))
    return measured


def texts(path: str) -> Iterator[str]:
    """All documents of the files that a path names."""
    config = DataConfig(name="text", kind=DataKind.text, path=path)
    for record in read_files(find_files(config), config):
        if isinstance(record, Rejected) and record.fix:
            raise DataError(str(record))
        if isinstance(record, Document):
            yield record.text


def table_of_reports(measured: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """A row for each number, a column for each tokenizer; numbers in and out of domain with a slash between."""
    wheres = list(next(iter(measured.values())))
    table = Table(" / ".join(wheres), *measured, highlight=False)
    for key, label in FIGURES.items():
        values = [[report.get(key) for report in by_place.values()] for by_place in measured.values()]
        cells = [["-" if value is None else shown(value) for value in of] for of in values]
        table.add_row(label, *(" / ".join(dict.fromkeys(cell)) for cell in cells))
    return table


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.tokenize", description=__doc__)
    parser.add_argument(
        "words", nargs="+", metavar="run", help='names, folders or globs of runs; then the text: "문장"'
    )
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for")
    parser.add_argument("--report", action="store_true", help="show what the runs measured; no text is given")
    parser.add_argument("--on", metavar="PATH", help="with --report: measure on these txt or jsonl files, too")
    parser.add_argument("--json", metavar="FILE", help="with --report: write all numbers, too")
    arguments = parser.parse_args(argv)
    if not arguments.report and (len(arguments.words) < 2 or arguments.on or arguments.json):
        parser.error('give runs and then a text, "문장"; or runs and --report, which --on and --json go with')
    with one_line_errors():
        if arguments.report:
            _show_reports(arguments)
        else:
            *names, text = arguments.words
            console, named = output_console(), find_tokenizers(arguments.outputs, names)
            console.print(table_of_pieces(named, text, coloured=console.is_terminal))


def _show_reports(arguments: argparse.Namespace) -> None:
    named = find_tokenizers(arguments.outputs, arguments.words)
    measured = reports(named, arguments.on)
    console = output_console()
    console.print(table_of_reports(measured))
    identities = [each.run.record["identity"] for each in named]
    if len({json.dumps([identity["parents"], identity["settings"].get("data")]) for identity in identities}) > 1:
        console.print("They were not measured on the same held-out text. Give one text to all with --on.")
    if arguments.json:
        write_json(Path(arguments.json), measured)
        print(f"wrote {arguments.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
