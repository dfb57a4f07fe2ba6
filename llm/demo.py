"""What `make demo` ends with: the finished demo runs as one table, three answers, and where everything lies."""

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from llm.errors import ConfigError, one_line_errors
from llm.run import Run, candidates

NAME = "demo"


def summary(base: Run, tuned: Run) -> Table:
    """The tokenizer, the model and the tuning, in numbers that are measured on held-out text."""
    words, model, tuning = base.parent("tokenizer").results, base.results, tuned.results
    change = tuning["val/loss"] / tuning["val/loss_before"] - 1
    table = Table(title="ttukttak demo, measured on held-out text", show_header=False)
    rows = {
        "tokenizer: vocabulary": f"{words['vocab_size']:,} tokens",
        "tokenizer: lines that round-trip": f"{words['exact_round_trip']:.2%} exactly, {words['nfc_round_trip']:.2%} in NFC",
        "tokenizer: tokens per eojeol": f"{words['tokens_per_eojeol']:.2f}",
        "model: parameters": f"{model['parameters']:,}",
        "model: tokens seen": f"{model['tokens']:,} at {model['tokens_per_second_median']:,.0f} tokens/s",
        "model: validation loss": f"{model['val/loss_before']:.3f} -> {model['val/loss']:.3f} nats per token",
        "model: bits per byte": f"{model['val/bits_per_byte_before']:.3f} -> {model['val/bits_per_byte']:.3f}",
        "corpus: unigram entropy": f"{model['unigram_bits_per_byte']:.3f} bits per byte under the same tokenizer",
        "tuning: trained by LoRA": f"{tuning['trainable_parameters']:,} of {tuning['parameters']:,} parameters",
        "tuning: held-out answer loss": f"{tuning['val/loss_before']:.3f} -> {tuning['val/loss']:.3f} ({change:+.1%})",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def last_samples(run: Run) -> list[dict[str, Any]]:
    """The texts that the model made at its last validation."""
    lines = (run.path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    return [sample for sample in samples if sample["step"] == samples[-1]["step"]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.demo", description=__doc__)
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for")
    outputs = parser.parse_args().outputs
    console = Console(highlight=False)
    with one_line_errors():
        base, tuned = _newest(outputs, "pretrain"), _newest(outputs, "finetune")
        console.print(summary(base, tuned))
        console.print("\n[bold]The model goes on[/bold] (from fixed beginnings)")
        for sample in last_samples(base):
            console.print(f"  {sample['prompt']}[bold]{sample['text']}[/bold]".replace("\n", " "), soft_wrap=True)
        console.print("\n[bold]It answers held-out questions[/bold]")
        for sample in last_samples(tuned):
            console.print(f"  질문: {sample['prompt']}".replace("\n", " "), soft_wrap=True, markup=False)
            console.print(f"  답변:{sample['text']}\n".replace("\n", " ") + "\n", soft_wrap=True, markup=False)
        console.print("[bold]Where everything lies[/bold]")
        for role, run in (("tokenizer", base.parent("tokenizer")), ("shards", base.parent("shards"))):
            console.print(f"  {role:<10} {run.path}", soft_wrap=True)
        console.print(f"  {'model':<10} {base.path / 'model'}", soft_wrap=True)
        console.print(f"  {'adapter':<10} {tuned.path / 'adapter'}", soft_wrap=True)
        console.print(f"\nTalk to it: python -m llm.chat {NAME} --prompt \"전자금융업자의 등록 요건은 무엇인가요?\"", soft_wrap=True)


def _newest(outputs: str, stage: str) -> Run:
    """The demo's run of a stage that finished last: a changed recipe leaves earlier ones beside it."""
    done = [run for run in candidates(outputs, stage) if run.record["name"] == NAME and run.is_done]
    if not done:
        raise ConfigError(f"there is no finished {stage} run named {NAME} under {outputs}/. Run make demo.")
    return max(done, key=lambda run: str(run.record["ended_at"]))


if __name__ == "__main__":
    main()
