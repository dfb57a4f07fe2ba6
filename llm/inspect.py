"""Look at data before it is used: python -m llm.inspect data/my-set.zip says what it is, what fits and what is wrong.

Only a sample is read, so that an archive of many gigabytes takes seconds; --leaks reads all of it.
"""

import argparse
import json
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from rich.cells import cell_len, set_cell_size

from llm.config.compose import data_config
from llm.config.data import BadRecords, CleaningConfig, CleaningLevel, DataConfig, DataKind
from llm.config.overrides import as_value, readable
from llm.data.clean import Cleaner, as_table
from llm.data.corpus import is_below, open_corpus, place_of, share_that_parts
from llm.data.files import explain_absent, find, find_files, read_files
from llm.data.overlap import overlap_of_texts
from llm.data.records import Conversation, Document, Rejected
from llm.data.sample import SAMPLED_RECORDS, presets, sample
from llm.data.suggest import examples, overrides, question_and_answer
from llm.errors import ConfigError, DataError, one_line_errors

SAMPLES = 3
SAMPLE_CHARACTERS = 160
SHOWN_FAULTS = 8
SHOWN_KEYS = 20
SEEN_RECORDS = 20  # that an example is looked for in
MB = 1e6
WAYS = {  # what to do about files that many sets have and nothing here reads
    ".xlsx": "Save each sheet as csv",
    ".hwp": "Convert them to txt",
    ".hwpx": "Convert them to txt",
    ".pdf": "Convert them to txt",
    ".docx": "Convert them to txt",
    ".7z": "Unpack them with 7z x",
    ".egg": "Unpack them on Windows",
    ".xml": "Extract their text; of a Wikipedia take its parquet or CirrusSearch dump, or WikiExtractor --json",
}


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What the sample says about a path."""

    path: str
    files: int
    bytes: int
    formats: dict[str, int]  # -> members
    encodings: dict[str, int]
    preset: str | None  # the one that fits best, or that was asked for; None: there is no text
    settings: list[str]  # overrides that it needs, or that were asked for
    if_answers: str | None  # the override that takes two of the columns for question and answer, where no preset fits
    fits: float  # the share of the sampled records that the preset makes something of without them
    also_fit: list[str]
    seen: dict[str, str]  # path in a record -> an example of what is there
    records: int  # sampled
    usable: int
    text_bytes: int  # of the usable ones
    faults: dict[str, int]  # reason -> records
    first_faults: list[str]  # file:line and what to do, the first of each reason
    samples: list[dict[str, str]]
    shapes: dict[str, int]  # of conversations -> records
    repairs: dict[str, int]  # what was put right in them
    cleaning: dict[str, Any]  # what each step does to the usable ones


def diagnose(
    path: str,
    *,
    name: str | None = None,
    settings: Sequence[str] = (),
    level: CleaningLevel = CleaningLevel.off,
) -> Diagnosis:
    """What lies at a path, and what training's own reader makes of a sample of it.

    It reads by the preset `name` with the overrides `settings`; if neither is given, by the preset that fits best, and
    if none does, by the longest text. `level`: what cleaning of that level does to the sample is counted, too.

    Raises:
        ConfigError: nothing is there, or there is no such preset or setting.
    """
    places = find(path)
    if not places:
        raise ConfigError(explain_absent(path) or f"{path}: no file is there. Give a file, a folder or a quoted glob.")
    if name is not None and name not in presets():
        raise ConfigError(f"--data {name} is no choice that reads files. Choose one of {', '.join(presets())}.")
    found = sample(places)
    fitting = found.fitting()
    raws = found.held() if name or settings or not fitting else []
    held = [raw.value for raw in raws]
    best = name or ("text" if settings or not fitting else fitting[0][0])
    typed = list(map(readable, settings))
    if not (settings or name or fitting):
        typed = overrides(held, are_files=all(raw.is_file for raw in raws))
    config = config_of(best, typed, path)
    records = list(found.records(config))
    usable = [record for record in records if not isinstance(record, Rejected)]
    faults = [*found.rejected, *(record for record in records if isinstance(record, Rejected))]
    if not settings and found.is_all and len(records) < SAMPLED_RECORDS:
        typed += _share(usable, config)
    chats = [record for record in usable if isinstance(record, Conversation)]
    return Diagnosis(
        path=path,
        files=found.files,
        bytes=found.bytes,
        formats=dict(found.formats.most_common()),
        encodings=dict(found.encodings.most_common()),
        preset=best if usable else None,
        settings=typed,
        if_answers=None if fitting or name or settings else question_and_answer(held),
        fits=0.0 if settings else dict(fitting).get(best, 0.0),
        also_fit=[other for other, _ in fitting if other != best],
        seen={where: str(value) for where, value in islice(examples(held[:SEEN_RECORDS]).items(), SHOWN_KEYS)},
        records=len(records),
        usable=len(usable),
        text_bytes=sum(len(_text(record).encode()) for record in usable),
        faults=dict(Counter(fault.reason for fault in faults).most_common()),
        first_faults=[str(fault) for fault in {fault.reason: fault for fault in reversed(faults)}.values()],
        samples=_samples(usable),
        shapes=dict(Counter(chat.shape for chat in chats).most_common()),
        repairs=dict(Counter(repair for chat in chats for repair in chat.repairs).most_common()),
        cleaning=_cleaned(usable, level),
    )


def _samples(usable: Sequence[Document | Conversation]) -> list[dict[str, str]]:
    step = max(1, len(usable) // SAMPLES)
    return [{"origin": each.origin, "text": _text(each)[:SAMPLE_CHARACTERS]} for each in usable[::step][:SAMPLES]]


def _cleaned(usable: Sequence[Document | Conversation], level: CleaningLevel) -> dict[str, Any]:
    """What each step of cleaning does to the records."""
    cleaner = Cleaner(CleaningConfig(level=level))
    for record in usable:
        cleaner.clean(record)
    return cleaner.report()


def config_of(name: str, settings: Sequence[str], path: str) -> DataConfig:
    """A preset with overrides, as train.py has it.

    Raises:
        ConfigError: they cannot be composed.
    """
    if not settings:
        return replace(presets()[name], path=path)
    return data_config([f"data={name}", f"data.path={as_value(path)}", *settings])


def _share(usable: list[Document | Conversation], config: DataConfig) -> list[str]:
    """The override of a few records of which none would be held out."""
    places = [place_of(record.text) for record in usable]
    if not places or is_below(min(places), config.held_out_share):
        return []
    share = share_that_parts(min(places), max(places))
    return [f"data.held_out_share={share}"] if share else []


def leaks(config: DataConfig, level: CleaningLevel, evaluation: str | None) -> dict[str, dict[str, Any]]:
    """How much of the held-out texts, and of those at `evaluation`, stands in the training text; all of it is read.

    Raises:
        ConfigError: a file cannot be found.
        DataError: nothing is left to measure.
    """
    corpus = open_corpus(replace(config, bad_records=BadRecords.drop, cleaning=CleaningConfig(level=level)))
    measured: dict[str, Iterable[Document | Conversation]] = {"held-out text": corpus.records(held_out=True)}
    if evaluation is not None:
        best = diagnose(evaluation)
        if best.preset is None:
            raise ConfigError(f"--evaluation {evaluation}: no preset fits it. Give txt, or jsonl with text.")
        own = config_of(best.preset, best.settings, evaluation)
        read = read_files(find_files(own), own)
        measured[evaluation] = (record for record in read if not isinstance(record, Rejected))
    found = {}
    for name, records in measured.items():
        training = (_said(record) for record in corpus.records(held_out=False))
        overlap, worst = overlap_of_texts(training, [(record.origin, _said(record)) for record in records])
        found[name] = asdict(overlap) | {"said": str(overlap), "worst": worst}
    return found


def _said(record: Document | Conversation) -> str:
    """The whole of a record's text: an answer leaks as a question does."""
    if isinstance(record, Document):
        return record.text
    return "\n".join(message["content"] for message in record.messages)


def show_leaks(found: dict[str, dict[str, Any]]) -> str:
    """The overlaps in lines for a person."""
    lines = []
    for name, overlap in found.items():
        lines.append(f"{name}: {overlap['said']}")
        lines += [f"  {100 * w['share']:.0f} % {w['origin']}: {_one_line(w['text'])}" for w in overlap["worst"]]
    return "\n".join(lines)


def _text(record: Document | Conversation) -> str:
    if isinstance(record, Document):
        return record.text
    return "\n".join(f"{message['role']}: {message['content']}" for message in record.messages)


def show(found: Diagnosis) -> str:
    """The diagnosis in lines for a person."""
    lines = [f"{found.path}: {found.files} files, {found.bytes / MB:.1f} MB, members: {_counts(found.formats)}"]
    if found.encodings:
        lines.append(f"encodings of the sample: {_counts(found.encodings)}")
    if not found.fits:
        lines += [_on_a_line(f"  {where}: ", example) for where, example in found.seen.items()]
    lines += _commands(found) if found.preset else ["no preset fits, and no text was found"]
    ways = {suffix: way for suffix, way in WAYS.items() if suffix in found.formats}
    lines += [f"not read: {found.formats[suffix]} {suffix}. {way}." for suffix, way in ways.items()]
    lines += [f"sample {sample['origin']}: {_one_line(sample['text'])}" for sample in found.samples]
    lines += [f"wrong, {count} times: {reason}" for reason, count in found.faults.items()][:SHOWN_FAULTS]
    lines += [f"  {line}" for line in found.first_faults[:SHOWN_FAULTS]]
    if found.usable and found.faults:
        lines.append("data.bad_records=drop leaves what is wrong out, with a count; else training ends at the first")
    lines += [as_table(found.cleaning)] if found.cleaning else []
    return "\n".join(lines)


def _commands(found: Diagnosis) -> list[str]:
    """What fits, how much it reads, and the commands that train on it."""
    also = f"; also fit: {', '.join(found.also_fit[:SAMPLES])}" if found.also_fit else ""
    fits = f" (fits {100 * found.fits:.0f} % of the sampled records{also})" if found.fits else ""
    preset, path = str(found.preset), f"data.path={as_value(found.path)}"
    tune = "python train.py stage=finetune base=<run>"
    train = tune if presets()[preset].kind is DataKind.conversations else "python train.py"
    lines = [
        f"preset: {' '.join([preset, *found.settings])}{fits}",
        f"yield: {found.usable} of {found.records} records of the sample, {found.text_bytes / MB:.2f} MB",
        *([f"shapes: {_counts(found.shapes)}"] if found.shapes else []),
        *[f"put right, {count} times: {what}" for what, count in found.repairs.items()][:SHOWN_FAULTS],
        f"use it: {train} {shlex.join([f'data={preset}', path, *found.settings])}",
    ]
    if found.if_answers:
        given = shlex.join(["data=conversations", path, found.if_answers])
        lines.append(f"if one column answers the other: {tune} {given}")
    return lines


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"


def _on_a_line(begin: str, text: str) -> str:
    """As much of a text as a line of the screen has room for; a Hangul letter takes two columns."""
    room = shutil.get_terminal_size().columns - cell_len(begin)
    whole = _one_line(text)
    return begin + (whole if cell_len(whole) <= room else set_cell_size(whole, max(0, room - 1)).rstrip() + "…")


def _one_line(text: str) -> str:
    return " / ".join(text.split("\n"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tool on a command line."""
    parser = argparse.ArgumentParser(prog="python -m llm.inspect", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", help="file, folder, glob, archive or URL")
    parser.add_argument(
        "settings", nargs="*", help="what is to be tried: data.text_field=내용 data.layout.records=data[]"
    )
    parser.add_argument("--data", help="the choice of conf/data to read it with, instead of the one that fits best")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    levels = [level.name for level in CleaningLevel]
    parser.add_argument("--clean", choices=levels, default="off", help="count what this cleaning does to the sample")
    parser.add_argument("--leaks", action="store_true", help="count held-out text in the training text; reads it all")
    parser.add_argument("--evaluation", help="a file whose texts are looked for in the training text, too")
    options = parser.parse_intermixed_args(arguments)
    level = CleaningLevel[options.clean]
    with one_line_errors():
        found = diagnose(options.path, name=options.data, settings=options.settings, level=level)
        report, lines = asdict(found), show(found)
        if found.usable and (options.leaks or options.evaluation):
            config = config_of(str(found.preset), found.settings, options.path)
            overlaps = leaks(config, level, options.evaluation)
            report["leaks"] = overlaps
            lines = "\n".join([lines, show_leaks(overlaps)])
        print(json.dumps(report, ensure_ascii=False, indent=2) if options.json else lines)
        if not found.usable:
            why = f"; the first: {found.first_faults[0]}" if found.first_faults else ". Give files with text."
            raise DataError(f"{found.path}: none of the sampled records can be used{why}")


if __name__ == "__main__":
    main(sys.argv[1:])
