"""The comparison of optimizers: where a curve meets the target, how far a sweep goes, and what the whole prints."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import time_to_loss
from tests.korean import documents
from tests.tuned import quick_peak

__all__ = ["quick_peak"]

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")


def point(step: float, bits: float) -> dict[str, float]:
    return {"step": step, "tokens": 100 * step, "seconds": 2 * step, "bits_per_byte": bits}


CURVE = [point(0, 3.0), point(10, 2.0), point(20, 2.2), point(30, 1.2)]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (2.0, point(10, 2.0)),  # at a validation
        (2.5, point(5, 2.5)),  # midway, on a straight line
        (1.7, point(25, 1.7)),  # after a rise
        (1.2, point(30, 1.2)),  # at the last
    ],
)
def test_a_curve_meets_the_target_on_the_line_between_validations(target: float, expected: dict[str, float]) -> None:
    assert time_to_loss.reached(CURVE, target) == pytest.approx(expected)


def test_a_curve_that_stays_above_the_target_does_not_meet_it() -> None:
    assert time_to_loss.reached(CURVE, 1.19) is None


def test_the_shortest_muon_run_that_gets_there_counts() -> None:
    curves = {
        "adamw-40": [[point(0, 3.0), point(40, 1.5)]],
        "muon-20": [[point(0, 3.0), point(20, 1.6)]],
        "muon-30": [[point(0, 3.0), point(10, 2.0), point(30, 1.0)]],
    }
    found = time_to_loss.to_target(curves, 0)
    assert found["muon"] == pytest.approx(point(20, 1.5))
    assert found["token_share"] == pytest.approx(0.5)
    del curves["muon-30"]
    assert time_to_loss.to_target(curves, 0) == {"adamw": point(40, 1.5), "muon": None, "token_share": None}


def test_the_whole_is_measured_printed_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.jsonl"
    lines = (json.dumps({"text": words}, ensure_ascii=False) for words in documents(300, seed=0))
    text.write_text("\n".join(lines), encoding="utf-8")
    small: list[Any] = [
        *("data=text", f"data.path={text}", "data.held_out_share=0.1", "data.sequence_length=16", "data.num_workers=1"),
        *("tokenizer.vocab_size=700", "tokenizer.initial_alphabet=none", "tokenizer.allow_lossy=true"),
        *("model.num_layers=1", "model.hidden_size=16", "optimizer.warmup_steps=1"),
    ]
    results = tmp_path / "results" / "here.json"
    options = f"--models llama_tiny --steps 4 --shares 0.5 --learning-rates 1e-3 --seeds 2 --outputs {tmp_path}/outputs"
    words = ["benchmarks.time_to_loss", *options.split(), "--validate-every-steps", "2", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", words + small)
    time_to_loss.main()
    said = capsys.readouterr().out
    kept = json.loads(results.read_text(encoding="utf-8"))
    (of_llama,) = kept["results"]
    assert of_llama["curves"].keys() == {"adamw-4", "muon-2"}
    assert [[p["step"] for p in curve] for curve in of_llama["curves"]["muon-2"]] == [[0, 2]] * 2
    for name, found in of_llama["sweeps"].items():
        assert min(found, key=found.get) == f"{of_llama['best'][name]:g}"
        assert f"{min(found.values()):.4f}" in said
    assert f"{of_llama['curves']['adamw-4'][0][-1]['tokens']:,}" in said
    assert "llama_tiny: tokens of Muon to where AdamW ends, of AdamW's, by seed: " in said


RECORD = json.loads((ROOT / "benchmarks" / "results" / "time_to_loss-2026-11-24.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("result", RECORD["results"], ids=lambda result: result["model"])
def test_the_figures_of_the_docs_are_those_of_the_recorded_sweep(result: dict[str, Any]) -> None:
    rates = [
        float(rate)
        for rate in re.findall(r"[\d.e-]+", re.findall(r"^\| `optimizer.learning_rate` (.*)$", DOCS, re.M)[0])
    ]
    for name, found in result["sweeps"].items():
        (row,) = re.findall(rf"^\| {result['model']}, {name}, \d+ steps \|(.*)\|$", DOCS, re.MULTILINE)
        said = {f"{rate:g}": cell.strip() for rate, cell in zip(rates, row.split("|"), strict=True) if cell.strip()}
        best = f"{result['best'][name]:g}"
        assert said == {rate: f"**{v:.3f}**" if rate == best else f"{v:.3f}" for rate, v in found.items()}
    shares = [row["token_share"] for row in result["to_target"]]
    assert f"| {', '.join(f'{share:.2f}' for share in shares)} of AdamW's |" in DOCS
    assert len(shares) == 3 and max(shares) < 0.75
