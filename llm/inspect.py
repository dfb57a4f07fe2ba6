"""Look at data before it is used: python -m llm.inspect data/my-set.zip says what it is, what fits and what is wrong.

Only a sample is read, so that an archive of many gigabytes takes seconds; --leaks reads all of it.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llm.config import CleaningConfig, CleaningLevel, DataConfig
from llm.config.data import BadRecords, DataKind
from llm.data.cleaning import Cleaner, as_json, as_table
from llm.data.corpus import open_corpus
from llm.data.files import open_files
from llm.data.leaks import LEAKED, N, Overlap, measure_overlap
from llm.data.records import Conversation, Document, Fault
from llm.data.sources.places import find
from llm.data.sources.presets import presets
from llm.data.sources.survey import Survey, survey
from llm.errors import ConfigError, DataError, one_line_errors

SAMPLES = 3
SAMPLE_CHARACTERS = 160
SHOWN_FAULTS = 8
MB = 1e6
WAYS = {  # what to do about files that many sets have and nothing here reads
    ".xlsx": "Save each sheet as csv",
    ".xls": "Save each sheet as csv",
    ".hwp": "Convert them to txt",
    ".hwpx": "Convert them to txt",
    ".pdf": "Convert them to txt",
    ".docx": "Convert them to txt",
    ".7z": "Unpack them with 7z x",
    ".rar": "Unpack them with 7z x",
    ".egg": "Unpack them on Windows",
    ".alz": "Unpack them on Windows",
    ".xml": "Extract their text; of a Wikipedia take its parquet or CirrusSearch dump, or WikiExtractor --json",
}


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What the sample says about a path."""

    path: str
    files: int
    bytes: int
    members: int
    listed_all: bool
    formats: dict[str, int]
    encodings: dict[str, int]
    repaired_names: list[str]
    preset: str | None  # the one that fits best, or that was asked for
    fits: float  # the share of the sampled records that it makes something of
    also_fit: list[str] = field(default_factory=list)
    records: int = 0  # sampled
    usable: int = 0
    text_bytes: int = 0  # of the usable ones
    faults: dict[str, int] = field(default_factory=dict)  # reason -> records
    first_faults: list[str] = field(default_factory=list)  # file:line and what to do, the first of each reason
    samples: list[dict[str, str]] = field(default_factory=list)
    shapes: dict[str, int] = field(default_factory=dict)  # of conversations -> records
    repairs: dict[str, int] = field(default_factory=dict)  # what was put right in them
    cleaning: dict[str, Any] = field(default_factory=dict)  # what each step does to the usable ones


def diagnose(path: str, *, name: str | None = None, level: CleaningLevel = CleaningLevel.off) -> Diagnosis:
    """What lies at a path, and what the preset `name`, or the one that fits best, makes of a sample of it.

    `level`: what cleaning of that level does to the sample is counted, too.

    Raises:
        ConfigError: nothing is there, or there is no such preset.
    """
    places = find(path)
    if not places:
        raise ConfigError(f"{path}: no file is there. Give a file, a folder, a quoted glob or a URL.")
    if name is not None and name not in presets():
        raise ConfigError(f"--data {name} is no choice that reads files. Choose one of {', '.join(presets())}.")
    found = survey(places)
    fitting = found.fitting()
    best = name or (fitting[0][0] if fitting else None)
    share = dict(fitting).get(best, 0.0) if best else 0.0
    about = _about(path, found) | {"preset": best, "fits": share}
    about["also_fit"] = [other for other, _ in fitting if other != best]
    return Diagnosis(**about, **_yield(found, presets()[best] if best else None, level))


def _about(path: str, found: Survey) -> dict[str, Any]:
    return {
        "path": path,
        "files": found.files,
        "bytes": found.bytes,
        "members": found.members,
        "listed_all": found.listed_all,
        "formats": dict(found.formats.most_common()),
        "encodings": dict(found.encodings.most_common()),
        "repaired_names": found.repaired_names[:SHOWN_FAULTS],
    }


def _yield(found: Survey, config: DataConfig | None, level: CleaningLevel) -> dict[str, Any]:
    """What the preset, and then the cleaning, makes of the sample."""
    records = list(found.records(config)) if config else []
    usable = [record for record in records if not isinstance(record, Fault)]
    faults = [*found.faults, *(record for record in records if isinstance(record, Fault))]
    firsts = {fault.reason: fault for fault in reversed(faults)}
    step = max(1, len(usable) // SAMPLES)
    cleaner = Cleaner(CleaningConfig(level=level))
    for record in usable:
        cleaner.clean(record)
    cleaner.check()
    chats = [record for record in usable if isinstance(record, Conversation)]
    return {
        "shapes": dict(Counter(chat.shape for chat in chats).most_common()),
        "repairs": dict(Counter(repair for chat in chats for repair in chat.repairs).most_common()),
        "records": len(records),
        "usable": len(usable),
        "text_bytes": sum(len(_text(record).encode()) for record in usable),
        "faults": dict(Counter(fault.reason for fault in faults).most_common()),
        "first_faults": [f"{fault.origin}: {fault.reason}. {fault.fix}." for fault in firsts.values()],
        "samples": [
            {"origin": record.origin, "text": _text(record)[:SAMPLE_CHARACTERS]} for record in usable[::step][:SAMPLES]
        ],
        "cleaning": as_json(cleaner),
    }


def leaks(path: str, name: str, level: CleaningLevel, evaluation: str | None) -> dict[str, Overlap]:
    """How much of the held-out texts, and of those at `evaluation`, stands in the training text; all of it is read.

    Raises:
        ConfigError: a file cannot be found.
        DataError: nothing is left to measure.
    """
    config = replace(presets()[name], path=path, bad_records=BadRecords.drop, cleaning=CleaningConfig(level=level))
    corpus = open_corpus(config)
    measured: dict[str, Iterable[Document | Conversation]] = {"held-out text": corpus.records(held_out=True)}
    if evaluation is not None:
        best = diagnose(evaluation).preset
        if best is None:
            raise ConfigError(f"--evaluation {evaluation}: no preset fits it. Give txt, or jsonl with text.")
        read = open_files(replace(presets()[best], path=evaluation)).records()
        measured[evaluation] = (record for record in read if not isinstance(record, Fault))
    return measure_overlap(corpus.records(held_out=False), measured)


def show_leaks(found: dict[str, Overlap]) -> str:
    """The overlaps in lines for a person."""
    lines = []
    for name, overlap in found.items():
        share = 100 * overlap.overlapping_ngrams / max(1, overlap.ngrams)
        lines.append(
            f"{name}: {overlap.overlapping_ngrams} of {overlap.ngrams} {N}-grams ({share:.2f} %) stand in the training "
            f"text; {overlap.touched_documents} of {overlap.documents} documents have one, {overlap.leaked_documents} "
            f"have {100 * LEAKED:.0f} % of theirs"
        )
        lines += [f"  {100 * w['share']:.0f} % {w['origin']}: {_one_line(w['text'])}" for w in overlap.worst]
    return "\n".join(lines)


def _text(record: Document | Conversation) -> str:
    if isinstance(record, Document):
        return record.text
    return "\n".join(f"{message['role']}: {message['content']}" for message in record.messages)


def show(found: Diagnosis) -> str:
    """The diagnosis in lines for a person."""
    lines = [
        f"{found.path}: {found.files} files, {found.bytes / MB:.1f} MB, {'' if found.listed_all else 'at least '}"
        f"{found.members} members ({_counts(found.formats)})"
    ]
    if found.encodings:
        lines.append(f"encodings of the sample: {_counts(found.encodings)}")
    if found.repaired_names:
        lines.append(f"names repaired from cp949: {', '.join(found.repaired_names[:SAMPLES])}")
    if found.preset is None:
        lines.append("no preset fits. Say where the text is: data=text data.text_field=<path such as data[].text>")
    else:
        also = f"; also fit: {', '.join(found.also_fit[:SAMPLES])}" if found.also_fit else ""
        lines.append(f"preset: {found.preset} (fits {100 * found.fits:.0f} % of the sampled records{also})")
        lines.append(f"yield: {found.usable} of {found.records} records of the sample, {found.text_bytes / MB:.2f} MB")
        lines += [f"shapes: {_counts(found.shapes)}"] if found.shapes else []
        lines += [f"put right, {count} times: {what}" for what, count in found.repairs.items()][:SHOWN_FAULTS]
        tunes = presets()[found.preset].kind is DataKind.conversations
        stage = "stage=finetune base=<run> " if tunes else ""
        lines.append(f"use it: python train.py {stage}data={found.preset} 'data.path=\"{found.path}\"'")
    lines += [
        f"not read: {found.formats[suffix]} {suffix}. {way}." for suffix, way in WAYS.items() if suffix in found.formats
    ]
    lines += [f"sample {sample['origin']}: {_one_line(sample['text'])}" for sample in found.samples]
    lines += [f"wrong, {count} times: {reason}" for reason, count in found.faults.items()][:SHOWN_FAULTS]
    lines += [f"  {line}" for line in found.first_faults[:SHOWN_FAULTS]]
    lines += [as_table(found.cleaning)] if found.cleaning else []
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"


def _one_line(text: str) -> str:
    return " / ".join(text.split("\n"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tool on a command line."""
    parser = argparse.ArgumentParser(prog="python -m llm.inspect", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", help="file, folder, glob, archive or URL")
    parser.add_argument("--data", help="the choice of conf/data to read it with, instead of the one that fits best")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    levels = [level.name for level in CleaningLevel]
    parser.add_argument("--clean", choices=levels, default="off", help="count what this cleaning does to the sample")
    parser.add_argument("--leaks", action="store_true", help="count held-out text in the training text; reads it all")
    parser.add_argument("--evaluation", help="a file whose texts are looked for in the training text, too")
    options = parser.parse_args(arguments)
    level = CleaningLevel[options.clean]
    with one_line_errors():
        found = diagnose(options.path, name=options.data, level=level)
        report, lines = asdict(found), show(found)
        if found.usable and (options.leaks or options.evaluation):
            overlaps = leaks(options.path, str(found.preset), level, options.evaluation)
            report["leaks"] = {name: asdict(overlap) for name, overlap in overlaps.items()}
            lines = "\n".join([lines, show_leaks(overlaps)])
        print(json.dumps(report, ensure_ascii=False, indent=2) if options.json else lines)
        if not found.usable:
            raise DataError(f"{found.path}: none of the sampled records can be used{_why(found)}")


def _why(found: Diagnosis) -> str:
    return f"; the first: {found.first_faults[0]}" if found.first_faults else ". Give files with text."


if __name__ == "__main__":
    main(sys.argv[1:])
