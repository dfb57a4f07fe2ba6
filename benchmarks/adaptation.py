"""What it does to a model of English to be adapted to Korean: new tokens or none, how many, how begun, what is trained.

python train.py experiment=english && python -m benchmarks.adaptation

The base is the run `english` (experiment=english). Every way reads the same Korean text, in rows of the same bytes
(trainer.max_bytes, data.sequence_bytes), from the package that data=korean_law is made of. Bits per byte are those of
raw text of the same held-out documents, Korean ones and English ones of the base's data. A way of two phases shares the
bytes out. FLOPs are those of training; seconds those of its runs, with validation and saving. Of several seeds the mean
is shown, and half of how far they are apart. Runs are found again: what was measured before is not measured anew.
"""

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import config_of, options, print_table
from llm.demo.law import write_statutes
from llm.model import flops_per_token
from llm.run.files import write_text
from llm.run.runs import Run
from llm.stage import run_stage
from llm.stage.pretrain import outline

EVERY = 12  # of the articles one in so many is taken
SHARE = 0.25  # of the bytes, that of the first of two phases
SAME = ("data=text", "data.held_out_share=0.02", "data.sequence_bytes=768", "data.batch_size=4", "model=pretrained")
RATES = ("optimizer.warmup_steps=10", "optimizer.learning_rate=1e-3")
QUIET = ("logger=local", "trainer=cpu", "trainer.validate_every_steps=1000000", "trainer.sample_prompts=[]")
ROWS_RATE = "optimizer.learning_rate=1e-2"
LORA = ("model.trainable=lora", "lora.rank=16", "lora.alpha=32", "optimizer.learning_rate=4e-3")


def extended(size: int, *others: str) -> tuple[str, ...]:
    return ("tokenizer=extend", "tokenizer.path=english", f"tokenizer.new_tokens={size}", *others)


WAYS: dict[str, list[tuple[str, ...]]] = {  # the settings of each phase
    "2,000 new tokens": [extended(2000)],
    "2,000, at the rate of LoRA": [extended(2000, "optimizer.learning_rate=4e-3")],
    "2,000, rows at random": [extended(2000, "model.new_embeddings=random")],
    "500 new tokens": [extended(500)],
    "2,000, new rows first, then all": [extended(2000, "model.trainable=new_rows", ROWS_RATE), extended(2000)],
    "2,000, LoRA and new rows": [extended(2000, *LORA)],
    "no new tokens": [("tokenizer=pretrained", "tokenizer.path=english")],
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one way and seed."""

    before: float  # bits per byte of held-out Korean, as it began
    korean: float
    english: float
    tokens_per_eojeol: float
    flops: float
    seconds: float


def korean_text(folder: Path) -> Path:
    """A sample of the articles of korean_law, written once."""
    path, whole = folder / "korean.jsonl", Path("data/korean_law.jsonl")
    if not path.is_file():
        if not whole.is_file():
            write_statutes(whole)
        lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(lines[::EVERY]))
    return path


def measure(phases: list[tuple[str, ...]], *, num_bytes: int, seed: int, outputs: str) -> Measured:
    """Train each phase on from the one before, and measure the last."""
    base, runs, flops = "english", [], 0.0
    shares = [1.0] if len(phases) == 1 else [SHARE, 1 - SHARE]
    for words, share in zip(phases, shares, strict=True):
        fixed = [f"data.path={korean_text(Path(outputs))}", f"outputs={outputs}", f"seed={seed}", f"model.path={base}"]
        budget = f"trainer.max_bytes={round(share * num_bytes)}"
        config = config_of("stage=pretrain", *SAME, *RATES, *QUIET, *fixed, budget, *words)
        run = run_stage(config)
        runs.append(run)
        flops += flops_of(config, run)
        base = str(run.path)
    results = runs[-1].results
    return Measured(
        before=runs[0].results["val/bits_per_byte_before"],
        korean=results["val/bits_per_byte"],
        english=english_of(runs[-1], outputs=outputs),
        tokens_per_eojeol=runs[-1].parent("tokenizer").results["tokens_per_eojeol"],
        flops=flops,
        seconds=sum(run.record["seconds"] for run in runs),
    )


def flops_of(config: Any, run: Run) -> float:
    """Of all steps that it took."""
    length = run.config["data"]["sequence_length"]
    known = replace(config, model=replace(config.model, path=run.config["model"]["path"]))
    model = outline(known, {"shards": run.parent("shards")})
    return float(run.results["tokens"] * flops_per_token(model, model.config, sequence_length=length))


def english_of(run: Run, *, outputs: str) -> float:
    """Bits per byte of what the base's data holds out."""
    words = ("evaluation.num_items=0", "evaluation.num_prompts=0", "logger=local", f"outputs={outputs}")
    done = run_stage(config_of("stage=evaluate", f"run={run.path}", "data=torch_docs", *words))
    return float(json.loads((done.path / "results.json").read_text(encoding="utf-8"))["val/bits_per_byte"])


def row_of(name: str, seeds: list[Measured]) -> list[str]:
    def mean(key: str) -> float:
        return statistics.mean(getattr(each, key) for each in seeds)

    apart = max(each.korean for each in seeds) - min(each.korean for each in seeds)
    korean = f"{mean('korean'):.3f}" + (f" ±{apart / 2:.3f}" if len(seeds) > 1 else "")
    numbers = (f"{mean('before'):.3f}", korean, f"{mean('english'):.3f}", f"{mean('tokens_per_eojeol'):.2f}")
    return [name, *numbers, f"{mean('flops'):.2e}", f"{mean('seconds'):.0f}"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--outputs", default="outputs")
    parser.add_argument("--bytes", type=int, default=480_000, help="of Korean text that each way is trained on")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--ways", type=int, default=len(WAYS), help="so many of them, the first ones")
    given = parser.parse_args()
    rows = []
    for name, phases in list(WAYS.items())[: given.ways]:
        seeds = [
            measure(phases, num_bytes=given.bytes, seed=seed, outputs=given.outputs) for seed in range(given.seeds)
        ]
        rows.append(row_of(name, seeds))
        print(*rows[-1], sep=" | ", flush=True)  # a table of what is there, should it be stopped
    columns = ("way", "Korean before", "Korean", "English", "tokens per eojeol", "FLOPs", "seconds")
    print_table("Bits per byte of held-out text", columns, rows)


if __name__ == "__main__":
    main()
