"""The benchmarks run, measure what they say, and are named as they are in the docs."""

import json
import re
import shlex
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm.config.data import Packing
from llm.config.training import Precision
from tests.korean import documents
from tests.rounding import rounding

ROOT = Path(__file__).parents[1]


def said_by(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    import_module(module).main()
    return capsys.readouterr().out


def test_what_wandb_costs_is_measured_beside_a_run_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_module("benchmarks.korean_text"), "VOCABULARY", 500)
    arguments = shlex.split("--rounds 1 --block-steps 2 --log-every 1 --only local")  # the others only take longer
    said = said_by("benchmarks.wandb_cost", arguments, monkeypatch, capsys)
    [(speed, ratio, end)] = re.findall(r"│ local +│ +([\d.]+) +│ +([\d.]+) +│ +[\d.]+ +│ +[\d.]+ +│ +([\d.]+) +│", said)
    assert float(speed) > 0
    assert (float(ratio), float(end)) == (1, 0)


def test_loading_is_measured_for_each_packing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = shlex.split("--tokens 1e5 --sequence-length 64 --batch-size 4 --workers 0 --rounds 1")
    lines = [line.split() for line in said_by("benchmarks.loading", arguments, monkeypatch, capsys).splitlines()]
    measured = {words[0]: (int(words[1]), float(words[2])) for words in lines[2:]}
    assert measured.keys() == {packing.value for packing in Packing}
    assert all(num_workers == 0 and speed > 0 for num_workers, speed in measured.values())


def test_sharding_is_measured_in_time_and_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    korean_text = import_module("benchmarks.korean_text")
    monkeypatch.setattr(korean_text, "VOCABULARY", 500)
    arguments = shlex.split("--megabytes 0.3 --workers 2 --rounds 1 --tokenizer blog")
    said = said_by("benchmarks.sharding", arguments, monkeypatch, capsys)
    table = re.findall(
        r"^(1 process|its threads|2 processes) +([\d.]+) +([\d.]+) +([\d.]+) +(\d+)$", said, re.MULTILINE
    )
    assert [way for way, *_ in table] == ["1 process", "its threads", "2 processes"]
    assert all(20 < int(peak) < 1500 for *_, peak in table)
    assert re.search(r"^speed-up of 2 processes over one, by round: \d+\.\d\d$", said, re.MULTILINE)
    assert re.search(r"^CPU time beyond the tokenizer's own \d+\.\d s: \d+\.\d %$", said, re.MULTILINE)


def test_the_whole_stage_is_measured_by_one_process_and_by_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_module("benchmarks.korean_text"), "VOCABULARY", 500)
    said = said_by("benchmarks.sharding", shlex.split("--stage --megabytes 0.3 --rounds 1"), monkeypatch, capsys)
    table = re.findall(r"^(1 process|2 processes) +([\d.]+) +([\d.]+) +([\d.]+) +(\d+)$", said, re.MULTILINE)
    assert [way for way, *_ in table] == ["1 process", "2 processes"]
    assert all(20 < int(peak) < 1500 for *_, peak in table)
    assert re.search(r"^speed-up of 2 processes over one, by round: \d+\.\d\d$", said, re.MULTILINE)


def test_the_share_of_the_loader_in_a_step_is_measured_for_each_packing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = shlex.split("--model llama_tiny --tokens 2e4 --sequence-length 32 --batch-size 2 --rounds 1")
    lines = [line.split() for line in said_by("benchmarks.loading", arguments, monkeypatch, capsys).splitlines()]
    measured = {words[0]: [float(word.rstrip("%")) for word in words[1:]] for words in lines[2:]}
    assert measured.keys() == {packing.value for packing in Packing}
    for read, learned, share, _ in measured.values():
        assert share == pytest.approx(100 * read / learned, rel=0.05)


def test_throughput_is_measured_for_ours_and_its_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = import_module("benchmarks.train_throughput")
    monkeypatch.setattr(module, "peak_flops", lambda *_: (1e9, "assumed"))
    monkeypatch.setattr(import_module("llm.trainer.fit"), "peak_flops", lambda *_: (1e9, "assumed"))
    small = module.Shape(
        name="tiny", num_layers=1, num_heads=2, hidden_size=16, vocab_size=97, sequence_length=16, batch_size=2
    )
    monkeypatch.setitem(module.PROFILES, "cpu", [(small, module.FP32, ("ours", "plain loop", "minimal GPT"))])
    arguments = ["--profile", "cpu", "--rounds", "2", "--steps", "2", "--warmup", "1", "--documents", "3"]
    arguments += ["--no-memory", "--results", str(tmp_path)]
    said = said_by("benchmarks.train_throughput", arguments, monkeypatch, capsys)
    table = re.findall(r"^(ours|plain loop|minimal GPT) +([\d,]+) +([\d.]+)x", said, re.MULTILINE)
    assert [name for name, *_ in table] == ["ours", "plain loop", "minimal GPT"]
    assert table[0][2] == "1.000"
    (written,) = tmp_path.iterdir()
    scores = json.loads(written.read_text(encoding="utf-8"))["scores"]
    assert [len(score["tokens_per_second"]) for score in scores] == [2, 2, 2]


class Operators(TorchDispatchMode):
    """Counts, by name, the operators that work on tensors of more than one number; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = (leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor))
        if max((tensor.numel() for tensor in tensors), default=0) > 1 and not func.is_view:
            self.counts[str(func)] += 1
        return out


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_a_step_of_fit_has_no_operator_that_the_plain_loop_has_not_but_for_its_gelu(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what their speeds differ by on a CPU is noise, or memory; benchmarks.overhead measures the host's own work."""
    contestants = import_module("benchmarks.contestants")
    monkeypatch.setattr(import_module("llm.trainer.fit"), "peak_flops", lambda *_: (1e9, "assumed"))
    small = contestants.Shape(
        name="tiny", num_layers=2, num_heads=2, hidden_size=32, vocab_size=97, sequence_length=32, batch_size=4
    )

    class FourthStep(contestants.Clock):  # type: ignore[name-defined, misc]
        def note(self) -> None:
            if len(self.times) == 3:
                self.operators = Operators().__enter__()
            if len(self.times) == 4:
                self.operators.__exit__(None, None, None)
            super().note()

    steps = {}
    for name in ("ours", "plain loop"):
        clock = FourthStep(small)
        contestants.CONTESTANTS[name](small, contestants.Mode(precision, False))(clock, 6)
        steps[name] = clock.operators.counts
    assert steps["ours"]["aten.addmm.default"] == steps["plain loop"]["aten.addmm.default"] > 0
    assert steps["ours"] - steps["plain loop"] == {
        "aten._fused_adamw_.default": 1,  # with decay, and without
        "aten.gelu.default": 2,  # of each layer, for seven on tensors of its size
        "aten.gelu_backward.default": 2,
    }
    assert steps["ours"].total() < steps["plain loop"].total()


def test_overhead_is_what_a_side_takes_more_than_its_bare_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module("benchmarks.overhead")
    monkeypatch.setattr(import_module("llm.trainer.fit"), "peak_flops", lambda *_: (1e9, "assumed"))
    small = module.Shape(
        name="tiny", num_layers=1, num_heads=2, hidden_size=16, vocab_size=97, sequence_length=16, batch_size=2
    )
    monkeypatch.setattr(module, "TINY", small)
    arguments = shlex.split("--rounds 2 --steps 2 --warmup 1 --shape tiny --cpu-time")
    said = said_by("benchmarks.overhead", arguments, monkeypatch, capsys)
    rows = re.findall(r"^(ours|HF Trainer) +([\d.]+) ms +(-?[\d.]+) ms", said, re.MULTILINE)
    assert [name for name, *_ in rows] == ["ours", "HF Trainer"] * 2  # for the host's shape and this one
    assert all(float(bare) > 0 for _, bare, _ in rows)
    module.show(small, module.FP32, {"ours": [(1.1, 1.0), (1.5, 1.2), (1.3, 1.0)]}, {"ours": 0.05})
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        *("ours", "1000.00", "ms", "300.00", "ms", "25.00%", "10.00%", "to", "30.00%", "5.00%")
    ]


def test_in_fp32_ours_comes_to_the_loss_of_the_trainer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of one model on the same rows, several documents to a row: weights, masks, optimizer, clipping, schedule, all."""
    module = import_module("benchmarks.default_mode")
    monkeypatch.setattr(import_module("llm.trainer.fit"), "peak_flops", lambda *_: (1e9, "assumed"))
    small = module.Shape(
        name="tiny", num_layers=2, num_heads=2, hidden_size=32, vocab_size=600, sequence_length=64, batch_size=4
    )
    monkeypatch.setattr(module, "TINY", small)
    text = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": document}, ensure_ascii=False) for document in documents(60)]
    text.write_text("\n".join(lines), encoding="utf-8")
    arguments = ["--only", "loss", "--shape", "tiny", "--steps", "12", "--seeds", "2", "--apart"]
    arguments += ["--outputs", str(tmp_path / "outputs"), "data=text", f"data.path={text}", "data.held_out_share=0.1"]
    arguments += ["tokenizer.vocab_size=600", "tokenizer.initial_alphabet=none"]
    said = said_by("benchmarks.default_mode", arguments, monkeypatch, capsys)
    losses = {
        name: [float(loss) for loss in re.findall(r"(\d\.\d{6}) \(", rest)]
        for name, rest in re.findall(
            r"^(HF Trainer, default|ours, default|ours, fp32|HF Trainer, bf16) +(.*)$", said, re.M
        )
    }
    assert losses["ours, fp32"] == pytest.approx(losses["HF Trainer, default"], rel=rounding(600))
    assert losses["HF Trainer, bf16"] == pytest.approx(losses["HF Trainer, default"], rel=1e-2)
    assert losses["HF Trainer, bf16"] != losses["HF Trainer, default"]
    first, second = losses["HF Trainer, default"]
    assert first != second and first < 6.3  # ln 600 is 6.40: the seeds differ, and something was learned


def test_lora_is_measured_beside_full_fine_tuning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = import_module("benchmarks.lora")
    monkeypatch.setattr(import_module("llm.trainer.fit"), "peak_flops", lambda *_: (1e9, "assumed"))
    monkeypatch.setattr(module, "find_spec", lambda _: None)  # the peer is an extra
    small = module.Contest(
        model="llama_tiny", vocab_size=97, length=32, rows=2, precision=module.Precision.fp32, conversations=64
    )
    monkeypatch.setitem(module.PROFILES, "cpu", small)
    arguments = ["--profile", "cpu", "--rounds", "2", "--steps", "2", "--warmup", "1", "--no-memory"]
    said = said_by("benchmarks.lora", [*arguments, "--results", str(tmp_path)], monkeypatch, capsys)
    assert "TRL is left out: it is not installed (python -m pip install -e '.[bench]')" in said
    speeds = re.findall(r"^(ours|ours, full) +([\d,]+) +([\d.]+)x", said, re.MULTILINE)
    assert [name for name, *_ in speeds] == ["ours", "ours, full"]
    assert speeds[0][2] == "1.000"
    lora, full = json.loads((tmp_path / "lora-cpu.json").read_text(encoding="utf-8"))
    # 3 blocks of 160: four matrices of 160 x 160 and three of 160 x 448, each with a row and a column for each rank
    adapters = 3 * 8 * (4 * (160 + 160) + 3 * (160 + 448))
    assert lora["optimizer_bytes"] == 8 * adapters
    assert lora["trainable_share"] == pytest.approx(8 * adapters / full["optimizer_bytes"])
    assert full["trainable_share"] == 1
    assert 4 * adapters < lora["saved_bytes"] < full["saved_bytes"]


@pytest.mark.parametrize(
    "command",
    sorted(
        {
            command.strip()
            for page in (ROOT / "docs").glob("*.md")
            for command in re.findall(r"python -m benchmarks\.[^`#\n]*", page.read_text(encoding="utf-8"))
        }
    ),
)
def test_a_benchmark_of_the_docs_is_there_and_takes_its_options(command: str) -> None:
    words = shlex.split(command)
    source = (ROOT / "benchmarks" / f"{words[2].removeprefix('benchmarks.')}.py").read_text(encoding="utf-8")
    assert 'if __name__ == "__main__":' in source
    assert all(f'"{word}"' in source for word in words if word.startswith("--"))
