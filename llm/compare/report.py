"""A trained model -> its report card: the chain from text to chat, as one HTML page and as Markdown."""

import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llm.compare.entries import Entry
from llm.compare.figures import training_figures
from llm.compare.page import html_page, report_body
from llm.compare.show import Section, markdown_sections
from llm.config.stages import MODEL_STAGES
from llm.data.documents import open_documents, read_texts
from llm.run.console import ABSENT, TextTable, shown
from llm.run.files import write_text
from llm.run.models import with_parents
from llm.run.record import METRICS, SAMPLES, now
from llm.run.runs import Run, candidates

MOST_BYTES = 2**24  # of held-out text that is compressed: xz takes about a second for each megabyte
MOST_STEPS = 12  # of which samples and losses are shown
MADE_OF_MODEL = ("evaluate", "export")  # stages whose runs are shown beside the model that they are of
HEADLINES = {  # of each stage: results, and what each is a number of
    "documents": {"train.documents": "documents to train on", "held_out.documents": "held out"},
    "tokenizer": {"vocab_size": "tokens", "tokens_per_eojeol": "of them per eojeol"},
    "shards": {"train.tokens": "tokens to train on", "held_out.tokens": "held out"},
    "pretrain": {"parameters": "parameters", "val/bits_per_byte": "bits per byte of held-out text"},
    "finetune": {"trainable_parameters": "parameters trained", "val/loss": "nats per token of held-out answers"},
    "evaluate": {"val/bits_per_byte": "bits per byte", "answers/loss": "nats per token of answers"},
}


def write_report(outputs: str, run: Run) -> list[Path]:
    """Write the page and the Markdown of a finished model under outputs/reports; where they are.

    Raises:
        DamagedError: a run that it was made from is gone, or its held-out text is not what it was.
    """
    chain = [Entry(each) for each in with_parents([run])]
    of = {entry.path.resolve() for entry in chain}
    after = [Entry(each) for stage in MADE_OF_MODEL for each in candidates(outputs, stage) if each.is_done]
    after = [entry for entry in after if entry.run and entry.run.places.get("run", Path()).resolve() in of]
    title = f"{run.record['name']}: from text to chat"
    intro = f"The report card of {run.stage}/{run.path.name}. Made {now()}."
    known = {entry: _known_levels(entry) for entry in chain if entry.stage == "pretrain"}
    sections = [*_sections(chain, after, known)]
    drawn = [figure for entry in chain for figure in training_figures(entry, known.get(entry, {}))]
    folder = Path(outputs) / "reports"
    page, text = folder / f"{run.path.name}.html", folder / f"{run.path.name}.md"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(page, html_page(title, report_body(title, intro, sections, drawn), drawn))
    write_text(text, markdown_sections(title, [Section("", [intro]), *sections]))
    return [page, text]


def _sections(
    chain: Sequence[Entry], after: Sequence[Entry], known: dict[Entry, dict[str, float]]
) -> Iterator[Section]:
    trained = [entry for entry in chain if entry.stage in MODEL_STAGES]
    yield _steps([*chain, *after])
    yield from (_levels(entry, levels) for entry, levels in known.items())
    yield from (_losses(entry) for entry in trained)
    yield from (_samples(entry) for entry in trained if entry.lines(SAMPLES))
    yield from _probes(trained[-1], [entry for entry in after if entry.stage == "evaluate"])
    yield _cost([*chain, *after])
    yield _environment(chain)
    yield _commands([*chain, *after])


def _steps(entries: Sequence[Entry]) -> Section:
    """The chain: each run with what it was made of and what came out."""
    rows, notes = [], []
    for entry in entries:
        assert entry.run
        parents = [path.name for role, path in entry.run.places.items()]
        text = [] if {"shards", "documents"} & {*entry.run.places} else [_of(entry.config, "data.path")]
        rows.append([entry.stage, _headline(entry.run), ", ".join(filter(None, [*parents, *text]))])
        if rights := (entry.run.record.get("notes") or {}).get("rights"):
            notes.append(f"Rights of the text {_of(entry.config, 'data.name')}: {rights}")
        if begun := _of(entry.config, "model.path"):
            notes.append(f"{entry.name} went on from the model {begun}, which has a report of its own.")
    return Section("From text to chat", list(dict.fromkeys(notes)), TextTable(["step", "came out", "made of"], rows))


def _headline(run: Run) -> str:
    found = ((_of(run.results, key), what) for key, what in HEADLINES.get(run.stage, {}).items())
    return ", ".join(f"{shown(value)} {what}" for value, what in found if value is not None) or run.path.name


def _of(nested: dict[str, Any], key: str) -> Any:
    """The value of a dotted key; None if there is none."""
    value: Any = nested
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


# Bits per byte


def _known_levels(entry: Entry) -> dict[str, float]:
    """What knows no language brings the held-out text of a pretraining to, in bits per byte."""
    assert entry.run
    levels = {"token counts of the training text alone (unigram)": entry.run.results.get("unigram_bits_per_byte")}
    levels |= compressed_bits(_held_out_texts(entry.run.parent("shards")) if "shards" in entry.run.places else ())
    return {name: bits for name, bits in levels.items() if bits is not None}


def compressed_bits(texts: Iterable[str]) -> dict[str, float]:
    """Bits per byte of texts as one stream, by compressors at their best; nothing where there is no text."""
    zipped, xzipped = zlib.compressobj(9), lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    raw_bytes = of_zlib = of_xz = 0
    for text in texts:
        content = text.encode()
        of_zlib, of_xz = of_zlib + len(zipped.compress(content)), of_xz + len(xzipped.compress(content))
        if (raw_bytes := raw_bytes + len(content)) >= MOST_BYTES:
            break
    sizes = {"zlib, level 9": of_zlib + len(zipped.flush()), "xz, level 9e": of_xz + len(xzipped.flush())}
    return {name: 8 * size / raw_bytes for name, size in sizes.items()} if raw_bytes else {}


def _held_out_texts(shards: Run) -> Iterator[str]:
    """Those of the documents that shards were made of; of a mixture, of each part."""
    for parent in (shards.parent(role) for role in shards.places):
        if parent.stage == "documents":
            yield from read_texts(open_documents(parent), "held_out")
        elif parent.stage == "shards":
            yield from _held_out_texts(parent)


def _levels(entry: Entry, known: dict[str, float]) -> Section:
    at_step = {f"{entry.name} at step 0": "val/bits_per_byte_before", f"{entry.name} at its end": "val/bits_per_byte"}
    measured = {name: entry.outcome[key] for name, key in at_step.items() if key in entry.outcome}
    rows = sorted((known | measured).items(), key=lambda each: each[1])
    notes = [
        "How many bits each byte of held-out text takes: fewer is better, 8 is knowing nothing. Compressors see the "
        f"same documents as one stream, of {MOST_BYTES >> 20} MB at most, and learn as they go."
    ]
    table = TextTable(["what knows the text", "bits per byte"], [[name, shown(bits)] for name, bits in rows])
    return Section("How well is held-out text known?", notes, table)


# Training


def _thinned(steps: Sequence[int]) -> list[int]:
    """The first, the last, and some between in even strides."""
    if len(steps) <= MOST_STEPS:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (MOST_STEPS - 1))] for place in range(MOST_STEPS)]


def _losses(entry: Entry) -> Section:
    """What it measured at each validation."""
    found = {record["step"]: record for record in entry.lines(METRICS) if "val/loss" in record}
    kept = [found[step] for step in _thinned([*found])]
    keys = {"step": "step", "tokens": "tokens", "val/loss": "nats per token", "val/bits_per_byte": "bits per byte"}
    rows = [[shown(record[key]) if key in record else ABSENT for key in keys] for record in kept]
    return Section(f"What {entry.stage} measured on held-out text", [], TextTable([*keys.values()], rows))


def _samples(entry: Entry) -> Section:
    """Each text that it wrote on the way, by prompt."""
    records = entry.lines(SAMPLES)
    kept = set(_thinned([*dict.fromkeys(record["step"] for record in records)]))
    prompts = dict.fromkeys(record["prompt"] for record in records)
    between = "" if entry.stage == "pretrain" else "\n→ "  # a base goes on from its prompt; a tuned model answers it
    rows = [
        [shown(record["step"]), f"{record['prompt']}{between}{record['text'].strip() if between else record['text']}"]
        for prompt in prompts
        for record in records
        if record["prompt"] == prompt and record["step"] in kept
    ]
    return Section(f"What {entry.stage} wrote on the way", [], TextTable(["step", "text"], rows))


def _probes(model: Entry, evaluations: Sequence[Entry]) -> Iterator[Section]:
    """What evaluations say; without one, how to make it."""
    from llm.stage.evaluate import table

    for entry in evaluations:
        assert entry.run
        of = entry.run.places["run"]
        yield Section(f"What the evaluation of {of.parent.name}/{of.name} says", [], table(entry.run.results))
    if not evaluations:
        how = f"It is not evaluated yet: python train.py stage=evaluate run={model.name}"
        yield Section("What can it do?", [how])


# How it was made


def _cost(entries: Sequence[Entry]) -> Section:
    amounts = [_amounts(entry) for entry in entries]
    names, total = [entry.stage for entry in entries], [*map(sum, list(zip(*amounts, strict=True))[:3]), 0.0]
    rows = [[name, *_cells(*each)] for name, each in zip([*names, "all"], [*amounts, total], strict=True)]
    return Section("What it cost", [], TextTable(["step", "time", "tokens", "FLOPs", "memory, at most"], rows))


def _amounts(entry: Entry) -> list[float]:
    """Seconds, tokens, FLOPs, and gigabytes at most; 0 of what a run does not have."""
    most = {"train/flops": 0.0, "memory/gigabytes": 0.0}
    for record in entry.lines(METRICS):
        most |= {name: max(value, record.get(name, 0.0)) for name, value in most.items()}
    tokens = entry.outcome.get("tokens", 0) if entry.stage in MODEL_STAGES else 0
    return [entry.outcome.get("seconds") or 0.0, tokens, *most.values()]


def _cells(seconds: float, tokens: float, flops: float, gigabytes: float) -> list[str]:
    time = f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.1f} min"
    cells = [f"{tokens:,.0f}" if tokens else "", f"{flops:.2e}" if flops else ""]
    return [cell or ABSENT for cell in (time, *cells, f"{gigabytes:.2f} GB" if gigabytes else "")]


def _environment(chain: Sequence[Entry]) -> Section:
    """Versions, devices and precision; of runs that were made under several, each."""
    found: dict[str, list[str]] = {}
    for entry in chain:
        assert entry.run
        record, trainer = entry.run.record, entry.config.get("trainer") or {}
        known = {"ttukttak (commit)": record.get("commit"), **record.get("versions", {})}
        known |= {"precision": record.get("precision")} | {key: trainer.get(key) for key in ("accelerator", "devices")}
        for name, value in known.items():
            found.setdefault(name, []).extend([str(value)] if value is not None else [])
    rows = [[name, ", ".join(dict.fromkeys(values))] for name, values in found.items() if values]
    return Section("What it was made with", [], TextTable(["", "version"], rows))


def _commands(entries: Sequence[Entry]) -> Section:
    """What makes all of it again, in order: a step that was made on the way has the command of what needed it."""
    commits = dict.fromkeys(entry.run.record.get("commit") for entry in entries if entry.run)
    known = [commit.rstrip("+") for commit in commits if commit]
    notes = ["Where a run is there, its command finds it and runs nothing."]
    if len(known) > 1 or any(commit and commit.endswith("+") for commit in commits):
        notes.append("It was made by several commits, or by files that differ from theirs: the last is named.")
    checkout = [f"git checkout {known[-1]}"] if known else []
    lines = dict.fromkeys([*checkout, *(entry.command or "not recorded" for entry in entries)])
    return Section("How to make it again", notes, commands=list(lines))
