"""LoRA beside full fine-tuning, and beside TRL's SFTTrainer, by turns in one process.

python -m benchmarks.lora --profile cpu
python -m benchmarks.lora --profile gpu

Everyone tunes the same base on the same conversations, packed into rows that no document sees across, at the same rank,
rate, rows a step and precision; a ratio is the median over rounds of ours over a peer's in the same round. Tokens are
those of conversations: padding is not counted. "TRL default" is SFTTrainer as it comes (one conversation a row, padded,
activations computed twice) but for the rows of a step and their length. The second table is what each takes and leaves.

TRL needs the extra: python -m pip install -e '.[bench]'. Without it, ours alone are compared.
"""

import gc
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import (
    asked_of_trainer,
    be_quiet,
    begin_peak,
    build_model,
    device,
    in_a_process,
    options,
    status_bytes,
    train_by_fit,
)
from llm.config.data import Packing
from llm.config.training import OptimizerConfig, Precision
from llm.config.tuning import LoraConfig, Method
from llm.data.order import MicroBatch
from llm.data.rows import lay_out
from llm.model import add_lora, count_base_parameters, count_parameters, save, save_adapter

TUNING = LoraConfig(rank=8, alpha=16)
OPTIMIZER = OptimizerConfig(learning_rate=2e-4, warmup_steps=10, weight_decay=0.0)
EOS = 0


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A base, and the rows of a step."""

    model: str
    vocab_size: int
    length: int
    rows: int
    precision: Precision
    conversations: int = 2000

    def base(self) -> Any:
        """The same weights each time."""
        torch.manual_seed(0)
        return build_model(self.model, self.vocab_size)

    def documents(self) -> list[np.ndarray]:
        """Conversations of random tokens, as long as real ones: half of them below a quarter of a row."""
        draw = np.random.default_rng(0)
        lengths = draw.lognormal(np.log(self.length / 4), 0.6, self.conversations).astype(int).clip(8, self.length)
        return [np.append(draw.integers(1, self.vocab_size, size - 1), EOS) for size in lengths]


PROFILES = {
    "cpu": Contest(model="llama_30m", vocab_size=8192, length=256, rows=4, precision=Precision.fp32),
    "gpu": Contest(model="llama_350m", vocab_size=32768, length=1024, rows=16, precision=Precision.bf16),
}


@dataclass
class Laps:
    """When the steps began, and the tokens of each."""

    marks: set[int]  # the steps at which a GPU is waited for
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def note(self) -> None:
        if len(self.times) in self.marks and torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def speed(self, first: int, last: int) -> float:
        return sum(self.tokens[first:last]) / (self.times[last] - self.times[first])


class PackedRows:
    """The conversations in rows, as pretraining packs documents."""

    raw_bytes, lost_bytes = 1, 0

    def __init__(self, contest: Contest, laps: Laps | None = None) -> None:
        documents = contest.documents()
        self._tokens, self._laps = np.concatenate(documents), laps
        self._layout = lay_out(
            np.array([len(document) for document in documents]),
            sequence_length=contest.length,
            packing=Packing.best_fit,
        )
        self.num_labels = self._layout.num_labels

    def __len__(self) -> int:
        return len(self.num_labels)

    def __getitems__(self, micro_batch: MicroBatch) -> dict[str, Any]:
        rows = np.asarray(micro_batch.rows)
        if self._laps:
            self._laps.note()
            self._laps.tokens.append(int(self.num_labels[rows].sum()))
        input_ids, labels, positions = torch.from_numpy(np.stack(self._layout.read(self._tokens, rows, pad_id=EOS)))
        return {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": positions,
            "num_labels": micro_batch.num_labels,
        }

    def describe(self, rows: Any) -> list[str]:
        return [f"row {row}" for row in rows]


Train = Callable[[Laps, int], None]  # takes that many steps


class Ours:
    """fit(), as stage=finetune calls it."""

    def __init__(self, contest: Contest, method: Method) -> None:
        self.contest, base = contest, contest.base()
        self.model: Any = base if method is Method.full else add_lora(base, TUNING)
        self.config = base.config
        self.optimizer_bytes = 2 * 4 * count_parameters(self.model, trainable=True)

    def __call__(self, laps: Laps, steps: int) -> None:
        contest = self.contest
        train_by_fit(
            self.model,
            (PackedRows(contest, laps), _Few(contest)),
            sequence_length=contest.length,
            batch_size=contest.rows,
            steps=steps,
            optimizer=OPTIMIZER,
            precision=contest.precision,
            config=self.config,
        )

    def saved_bytes(self) -> int:
        with tempfile.TemporaryDirectory() as scratch:
            (save_adapter if hasattr(self.model, "peft_config") else save)(self.model, Path(scratch))
            return max(path.stat().st_size for path in Path(scratch).iterdir())


class _Few(PackedRows):
    """One row to validate on, for validation is not what is timed."""

    def __init__(self, contest: Contest) -> None:
        super().__init__(contest)
        self.num_labels = self.num_labels[:1]


class Trl:
    """SFTTrainer on the conversations as token ids, which it need not encode."""

    def __init__(self, contest: Contest, *, is_default: bool) -> None:
        self.contest, self.is_default = contest, is_default
        self.base, self.model, self.optimizer_bytes = contest.base(), None, 0

    def __call__(self, laps: Laps, steps: int) -> None:
        from datasets import Dataset
        from peft import LoraConfig as PeftConfig
        from transformers import PrinterCallback, TrainerCallback
        from trl import SFTConfig, SFTTrainer

        contest = self.contest
        same_mode = {} if self.is_default else {"packing": True, "gradient_checkpointing": False}

        class Note(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                laps.note()

        with tempfile.TemporaryDirectory() as scratch:
            asked = asked_of_trainer(scratch, steps=steps, batch_size=contest.rows, precision=contest.precision)
            trainer = SFTTrainer(
                model=self.base if self.model is None else self.model,
                args=SFTConfig(
                    **asked, max_length=contest.length, learning_rate=OPTIMIZER.learning_rate, **same_mode
                ),
                train_dataset=Dataset.from_dict({"input_ids": [d.tolist() for d in contest.documents()]}),
                processing_class=_tokenizer(contest.vocab_size),
                peft_config=None if self.model is not None else PeftConfig(
                    r=TUNING.rank, lora_alpha=TUNING.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
                ),
                callbacks=[Note()],
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            collate = trainer.data_collator

            def counted(rows: Any) -> Any:
                batch = collate(rows)
                mask = batch.get("attention_mask")
                laps.tokens.append(int(batch["input_ids"].numel() if mask is None else mask.sum()))
                return batch

            trainer.data_collator = counted
            trainer.train()
            self.model = trainer.model
            states = trainer.optimizer.state.values()
            self.optimizer_bytes = sum(
                tensor.numel() * tensor.element_size()
                for state in states
                for tensor in state.values()
                if isinstance(tensor, torch.Tensor) and tensor.ndim
            )

    def saved_bytes(self) -> int:
        assert self.model is not None
        with tempfile.TemporaryDirectory() as scratch:
            self.model.save_pretrained(scratch)
            return max(path.stat().st_size for path in Path(scratch).iterdir())


def _tokenizer(vocab_size: int) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<|endoftext|>": EOS} | {f"w{number}": number for number in range(1, vocab_size)}
    wrapped = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=wrapped, eos_token="<|endoftext|>", pad_token="<|endoftext|>", bos_token="<|endoftext|>"
    )


CONTESTANTS: dict[str, Callable[[Contest], Any]] = {
    "ours": lambda contest: Ours(contest, Method.lora),
    "ours, full": lambda contest: Ours(contest, Method.full),
    "TRL packed": lambda contest: Trl(contest, is_default=False),
    "TRL default": lambda contest: Trl(contest, is_default=True),
}


@dataclass
class Score:
    """What a contestant did, and what its tuning takes and leaves."""

    contestant: str
    tokens_per_second: list[float] = field(default_factory=list)
    seconds_per_step: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    trainable_share: float = 0.0  # of the base's parameters
    optimizer_bytes: int = 0
    saved_bytes: int = 0


def compare(contest: Contest, names: list[str], *, rounds: int, steps: int, warmup: int, memory: bool) -> list[Score]:
    contestants = {name: CONTESTANTS[name](contest) for name in names}
    scores = {name: Score(name) for name in names}
    for _ in range(rounds):
        for name, train in contestants.items():
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            laps = Laps({warmup, warmup + steps})
            train(laps, warmup + steps + 1)
            scores[name].tokens_per_second.append(laps.speed(warmup, warmup + steps))
            scores[name].seconds_per_step.append((laps.times[warmup + steps] - laps.times[warmup]) / steps)
            if torch.cuda.is_available():
                scores[name].peak_bytes = torch.cuda.max_memory_allocated()
                train.model.cpu()
    for name, done in contestants.items():
        scores[name].trainable_share = count_parameters(done.model, trainable=True) / count_base_parameters(done.model)
        scores[name].optimizer_bytes, scores[name].saved_bytes = done.optimizer_bytes, done.saved_bytes()
    del contestants
    gc.collect()
    if memory and not torch.cuda.is_available():
        for name in names:
            scores[name].peak_bytes = in_a_process(_grow, name, contest)
    return list(scores.values())


def _grow(name: str, contest: Contest) -> int:
    """The largest resident memory of a process that only trains, less what it had before its base was built."""
    _be_quiet()
    small = Contest(model="llama_tiny", vocab_size=64, length=32, rows=2, precision=contest.precision, conversations=64)
    CONTESTANTS[name](small)(Laps(set()), 2)  # imports and first calls are not the contest's
    before = begin_peak()
    CONTESTANTS[name](contest)(Laps(set()), 4)
    return status_bytes("VmHWM") - before


def _print(contest: Contest, scores: list[Score]) -> None:
    ours, full = scores[0], next((score for score in scores if score.contestant == "ours, full"), scores[0])
    print(
        f"{contest.model}, {contest.precision.name}: {contest.rows} x {contest.length} tokens a step, vocabulary "
        f"{contest.vocab_size}, rank {TUNING.rank}; medians of {len(ours.tokens_per_second)} rounds by turns"
    )
    print(f"{'':<13}{'tokens/s':>10}{'ours over it':>14}{'rounds':>14}{'s a step':>10}{'peak memory':>13}")
    for score in scores:
        pairs = zip(ours.tokens_per_second, score.tokens_per_second, strict=True)
        ratios = sorted(mine / theirs for mine, theirs in pairs)
        print(
            f"{score.contestant:<13}{statistics.median(score.tokens_per_second):>10,.0f}"
            f"{statistics.median(ratios):>13.3f}x{f'{ratios[0]:.2f}-{ratios[-1]:.2f}':>14}"
            f"{statistics.median(score.seconds_per_step):>10.3f}{score.peak_bytes / 2**20:>10,.0f} MB"
        )
    print(f"\n{'':<13}{'trained':>10}{'optimizer state':>24}{'saved':>24}")
    for score in scores:
        state = f"{score.optimizer_bytes / 1e6:,.2f} MB ({score.optimizer_bytes / full.optimizer_bytes:.2%})"
        saved = f"{score.saved_bytes / 1e6:,.2f} MB ({score.saved_bytes / full.saved_bytes:.2%})"
        print(f"{score.contestant:<13}{score.trainable_share:>10.2%}{state:>24}{saved:>24}", flush=True)


def _be_quiet() -> None:
    be_quiet()
    if find_spec("datasets"):
        import_module("datasets").disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--profile", choices=PROFILES, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6, help="timed in each round, after --warmup")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--model", help="a preset of conf/model in place of the profile's")
    parser.add_argument("--precision", choices=[precision.name for precision in Precision])
    parser.add_argument(
        "--no-memory", action="store_true", help="do not measure peak memory, in processes of their own"
    )
    parser.add_argument("--results", type=Path, help="a folder to write the figures to, as lora-<device>.json")
    arguments = parser.parse_args()
    _be_quiet()
    contest = PROFILES[arguments.profile]
    changes = {"model": arguments.model, "precision": arguments.precision and Precision[arguments.precision]}
    contest = Contest(**{**vars(contest), **{key: value for key, value in changes.items() if value}})
    names = [name for name in CONTESTANTS if not name.startswith("TRL") or find_spec("trl")]
    if len(names) < len(CONTESTANTS):
        print("TRL is left out: it is not installed (python -m pip install -e '.[bench]')")
    scores = compare(
        contest,
        names,
        rounds=arguments.rounds,
        steps=arguments.steps,
        warmup=arguments.warmup,
        memory=not arguments.no_memory,
    )
    _print(contest, scores)
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        path = arguments.results / f"lora-{device().type}.json"
        path.write_text(json.dumps([*map(asdict, scores)], indent=1) + "\n", encoding="utf-8")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
