"""What `make demo` ends with: the finished demo runs as one table, what they say, and where everything lies."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llm.errors import ConfigError, DamagedError, one_line_errors
from llm.run.record import read_metrics
from llm.run.runs import Run, candidates

NAME = "demo"
PREFIXES = 2  # beginnings of the base that are shown
QUESTION = "전자금융업자의 등록 요건은 무엇인가요?"


def summary(base: Run, tuned: Run) -> Table:
    """The tokenizer, the model and the tuning, in numbers that are measured on held-out text."""
    cut, model, tuning = base.parent("tokenizer").results, base.results, tuned.results
    before, after = tuning["val/loss_before"], tuning["val/loss"]
    bits = f"{model['val/bits_per_byte_before']:.3f} -> {model['val/bits_per_byte']:.3f}"
    rows = (
        ("tokenizer", "vocabulary", f"{cut['vocab_size']:,} tokens"),
        ("", "lines that round-trip", f"{cut['exact_round_trip']:.2%} exactly, {cut['nfc_round_trip']:.2%} in NFC"),
        ("", "tokens per eojeol", f"{cut['tokens_per_eojeol']:.2f}"),
        ("model", "parameters", f"{model['parameters']:,}"),
        ("", "tokens seen", f"{model['tokens']:,} at {model['tokens_per_second_median']:,.0f} tokens/s"),
        ("", "validation loss", f"{model['val/loss_before']:.3f} -> {model['val/loss']:.3f} nats per token"),
        ("", "bits per byte", bits),
        ("", "unigram entropy", f"{model['unigram_bits_per_byte']:.3f} bits per byte (token counts alone)"),
        ("tuning", "trained by LoRA", f"{tuning['trainable_parameters']:,} of {tuning['parameters']:,} parameters"),
        ("", "held-out answer loss", f"{before:.3f} -> {after:.3f} ({after / before - 1:+.1%})"),
    )
    table = Table(title="ttukttak demo, measured on held-out text", show_header=False, highlight=False)
    for part, name, value in rows:
        if part and table.rows:
            table.add_section()
        table.add_row(part, name, value)
    return table


def samples(run: Run) -> list[dict[str, Any]]:
    """The texts that the model made at each validation, the earliest first.

    Raises:
        DamagedError: there are none.
    """
    path = run.path / "samples.jsonl"
    if texts := read_metrics(path):  # the same format: one JSON object a line
        return texts
    raise DamagedError(f"{path} is missing or empty. Run the stage again with reuse=never to make it.")


def last(texts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the last validation."""
    return [text for text in texts if text["step"] == texts[-1]["step"]]


def newest(outputs: str, stage: str) -> Run:
    """The demo's run of a stage that finished last: a changed recipe leaves earlier ones beside it.

    Raises:
        ConfigError: none is finished.
    """
    done = [run for run in candidates(outputs, stage) if run.record["name"] == NAME and run.is_done]
    if not done:
        raise ConfigError(f"there is no finished {stage} run named {NAME} under {outputs}/. Make it with make demo.")
    return max(done, key=lambda run: str(run.record["ended_at"]))


def places(outputs: str, base: Run, tuned: Run) -> dict[str, Path]:
    """What the demo left -> where it lies."""
    found = {
        "tokenizer": base.parent("tokenizer").path,
        "shards": base.parent("shards").path / "shards",
        "model": base.path / "model",
        "adapter": tuned.path / "adapter",
        "tuned model": tuned.path / "model",
        "W&B": Path(outputs, "wandb"),
    }
    return {name: path for name, path in found.items() if path.exists()}


def next_command(outputs: str, tuned: Run) -> str:
    """How to talk to the tuned model, by its folder's name where the demo's name does not say which."""
    namesakes = [r for r in candidates(outputs, tuned.stage) if r.record["name"] == NAME and r.is_done]
    name = NAME if len(namesakes) == 1 else tuned.path.name
    where = "" if outputs == "outputs" else f" --outputs {outputs}"
    return f'python -m llm.chat {name} --prompt "{QUESTION}"{where}'


def _print_texts(console: Console, base: Run, tuned: Run) -> None:
    texts = samples(base)
    _print_title(console, "The base model goes on from a beginning")
    for sample in last(texts)[:PREFIXES]:
        for same in (s for s in texts if s["prompt"] == sample["prompt"] and s["step"] in (0, sample["step"])):
            _print_pair(console, f"step {same['step']}", Text.assemble((same["prompt"], "bold"), same["text"]))
    _print_title(console, "The tuned model answers held-out questions")
    for sample in last(samples(tuned)):
        _print_pair(console, "질문", Text(sample["prompt"]))
        _print_pair(console, "답변", Text(sample["text"].strip()))


def _print_title(console: Console, title: str) -> None:
    console.print(Text(f"\n{title}", style="bold"))


def _print_pair(console: Console, label: str, text: Text) -> None:
    """A text beside its label, wrapped under itself."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    grid.add_row(Text(label), text)
    console.print(Padding(grid, (0, 0, 0, 2)))


def _print_places(console: Console, found: dict[str, Path]) -> None:
    _print_title(console, "Where everything lies (the report is a page: open it in a browser)")
    for name, path in found.items():
        console.print(Text(f"  {name:<10} {path}"), soft_wrap=True)  # to copy: never broken into lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.demo", description=__doc__)
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for")
    outputs: str = parser.parse_args(argv).outputs
    console = Console(highlight=False)
    with one_line_errors():
        tuned = newest(outputs, "finetune")
        base = tuned.parent("base")
        console.print(summary(base, tuned))
        _print_texts(console, base, tuned)
        from llm.compare.report import write_report  # imports plotly

        report = write_report(outputs, tuned)[0]
        _print_places(console, places(outputs, base, tuned) | {"report": report})
        _print_title(console, "Talk to it")
        console.print(Text(f"  {next_command(outputs, tuned)}"), soft_wrap=True)


if __name__ == "__main__":
    main()
