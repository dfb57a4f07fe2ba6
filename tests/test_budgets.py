"""The ranking of tokenizers at equal bytes and equal FLOPs: what is stored of a run, and what is read off it."""

import csv
import math
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm.compare.budgets import Curve, agreement, read_curve, standings
from llm.compare.command import main
from llm.data.order import EvaluationBatches
from llm.data.rows import MOST_BLOCKS, TokenRows
from llm.data.shards import read_manifest
from llm.run.record import VALIDATION, read_metrics
from llm.run.runs import Run
from llm.trainer.validation import evaluate
from tests.korean import documents
from tests.test_stages import run
from tests.tuned import quick_peak

__all__ = ["quick_peak"]

TINY = [
    *("tokenizer.vocab_size=400", "model.num_layers=1", "model.num_heads=2", "model.hidden_size=16", "data=text"),
    *("data.held_out_share=0.1", "data.sequence_bytes=200", "data.batch_size=4", "trainer.max_bytes=20000"),
    *("trainer.log_every_steps=1", "trainer.validate_every_steps=3", "trainer.sample_prompts=[]", "logger=local"),
    "trainer.precision=fp32",
]
NFC = "tokenizer.normalizer=NFC"  # the text is in NFC: it is cut as without


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Run]]:
    """Two seeds of a model under each of three tokenizers, of which two cut the text alike."""
    folder = tmp_path_factory.mktemp("budgets")
    (folder / "text.txt").write_text("\n\n".join(documents(300)), encoding="utf-8")
    given = [*TINY, f"data.path={folder / 'text.txt'}", f"outputs={folder / 'outputs'}"]
    kinds = {"byte_bpe": ["tokenizer=byte_bpe"], "nfc": ["tokenizer=byte_bpe", NFC], "blog": ["tokenizer=blog"]}
    return {n: [run("pretrain", *given, *own, f"seed={seed}") for seed in (0, 1)] for n, own in kinds.items()}


def lines_of(found: Run) -> list[dict[str, Any]]:
    return read_metrics(found.path / VALIDATION)


# What is stored


def test_each_validation_keeps_what_the_run_was_fed_and_what_each_document_costs(made: dict[str, list[Run]]) -> None:
    for found in (each for of in made.values() for each in of):
        metrics, records, shards = read_metrics(found.path / "metrics.jsonl"), lines_of(found), found.parent("shards")
        measured = [record for record in metrics if "val/bits_per_byte" in record]
        assert [record["step"] for record in records] == [record["step"] for record in measured]
        train, held_out = shards.results["train"], shards.results["held_out"]
        of_token = next(record["train/flops"] / record["tokens"] for record in metrics if "train/flops" in record)
        labels = train["tokens"] - train["documents"]  # the first token of a document is none
        for record, its in zip(records, measured, strict=True):
            assert len(record["nats"]) == len(record["raw_bytes"]) == held_out["documents"]
            assert sum(record["raw_bytes"]) == held_out["raw_bytes"]
            bits = sum(record["nats"]) / math.log(2) / held_out["raw_bytes"]
            assert bits == pytest.approx(its["val/bits_per_byte"], abs=1e-6)  # lost bytes charged, of blog
            assert record["bytes"] == pytest.approx(its["tokens"] * train["raw_bytes"] / labels)
            assert record["flops"] == pytest.approx(its["tokens"] * of_token)


def model_of(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=True, **shape)).eval()


def measured(model: Any, rows: TokenRows) -> Any:
    batches = EvaluationBatches(rows.num_labels, batch_size=3, edges=rows.first_rows)
    loader = torch.utils.data.DataLoader(rows, batch_sampler=batches, collate_fn=lambda batch: batch)
    return evaluate(model, loader, rows, device=torch.device("cpu"))


@pytest.mark.parametrize("most", [MOST_BLOCKS, 7])
def test_the_nats_of_documents_are_those_of_a_slow_loop(
    made: dict[str, list[Run]], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Each label by itself, in rows that cut documents anywhere; and of seven blocks those of the documents in them."""
    monkeypatch.setattr("llm.data.rows.MOST_BLOCKS", most)
    folder = made["byte_bpe"][0].parent("shards").path / "shards"
    manifest = read_manifest(folder)
    rows, model, length = TokenRows({"": (folder, manifest)}, "held_out", sequence_length=24), model_of(400), 24
    tokens = np.concatenate([np.fromfile(folder / s.tokens_file, manifest.dtype) for s in manifest.held_out.shards])
    sizes = np.concatenate([np.load(folder / s.documents_file) for s in manifest.held_out.shards])
    owner, expected = np.repeat(np.arange(len(sizes)), sizes[:, 0]), [0.0] * len(sizes)
    for start in range(0, len(tokens) - 1, length):
        for place in range(start, min(start + length, len(tokens) - 1)):
            if owner[place + 1] == owner[place]:
                begin = max(start, int(np.flatnonzero(owner == owner[place])[0]))
                with torch.no_grad():
                    logits = model(torch.from_numpy(tokens[None, begin : place + 1].astype(np.int64))).logits[0, -1]
                expected[owner[place]] -= float(logits.log_softmax(0)[int(tokens[place + 1])])
    groups = [place * min(most, len(sizes)) // len(sizes) for place in range(len(sizes))]
    summed = [sum(n for n, group in zip(expected, groups, strict=True) if group == g) for g in range(max(groups) + 1)]
    assert measured(model, rows).block_nats == pytest.approx(summed, rel=1e-4)


def test_a_model_that_only_knows_its_ids_by_other_names_gets_the_same_value(
    made: dict[str, list[Run]], tmp_path: Path
) -> None:
    """Ids renamed in the shards, and the rows of the embedding with them."""
    folder = made["byte_bpe"][0].parent("shards").path / "shards"
    manifest, names = read_manifest(folder), np.random.default_rng(0).permutation(400)
    for shard in manifest.held_out.shards:
        tokens = np.fromfile(folder / shard.tokens_file, manifest.dtype)
        names[tokens].astype(manifest.dtype).tofile(tmp_path / shard.tokens_file)
        (tmp_path / shard.documents_file).write_bytes((folder / shard.documents_file).read_bytes())
    model, renamed = model_of(400), model_of(400)
    with torch.no_grad():
        renamed.get_input_embeddings().weight[torch.from_numpy(names)] = model.get_input_embeddings().weight
    found = []
    for each, place in ((model, folder), (renamed, tmp_path)):
        result = measured(each, TokenRows({"": (place, manifest)}, "held_out", sequence_length=24))
        point = {"bytes": 1.0, "flops": 1.0, "raw_bytes": result.block_bytes, "nats": result.block_nats}
        found.append(standings({"it": [read_curve([point])]}, "bytes", 1.0)[0].bits_per_byte)
    assert found[0] == pytest.approx(found[1], abs=1e-6) and f"{found[0]:.4f}" == f"{found[1]:.4f}"


# What is read off


def curve(*points: tuple[float, float, list[float]], raw_bytes: tuple[int, ...] = (10, 30)) -> Curve:
    return read_curve([{"bytes": b, "flops": f, "raw_bytes": raw_bytes, "nats": n} for b, f, n in points])


def test_a_budget_between_two_validations_is_read_in_a_straight_line_over_its_logarithm() -> None:
    found = curve((0, 0, [90, 90]), (100, 1000, [40, 80]), (400, 4000, [20, 60]))
    assert found.at("bytes", 200).tolist() == pytest.approx([30, 70])  # 100 x 2 = 200 = 400 / 2
    assert found.at("flops", 4000).tolist() == [20, 60]
    assert curve((0, 0, [9, 9]), (50, 5, [4, 8])).at("bytes", 50).tolist() == [4, 8]
    for outside in (99, 401):
        with pytest.raises(ValueError, match=f"{outside} bytes lie outside of what was measured"):
            found.at("bytes", outside)


def test_the_interval_of_a_difference_is_that_of_a_slow_loop() -> None:
    draw = random.Random(0)
    sizes = [draw.randint(20, 400) for _ in range(12)]
    nats = {n: [[s * draw.gauss(mean, 0.05) for s in sizes] for _ in range(3)] for n, mean in (("a", 1.0), ("b", 1.03))}
    curves = {n: [curve((1, 1, each), raw_bytes=tuple(sizes)) for each in of] for n, of in nats.items()}
    first, second = standings(curves, "bytes", 1.0, draws=50, seed=3)
    best, other = first.name, second.name
    bits = {n: [sum(each) / math.log(2) / sum(sizes) for each in of] for n, of in nats.items()}
    assert statistics.fmean(bits[best]) < statistics.fmean(bits[other])
    differences = [o - b for o, b in zip(bits[other], bits[best], strict=True)]
    assert second.differences == pytest.approx(differences)
    drawn = np.random.default_rng(3).multinomial(12, [1 / 12] * 12, 50)
    chances = np.random.default_rng(4).standard_t(2, 50)
    values = []
    for times, chance in zip(drawn, chances, strict=True):
        total = weight = 0.0
        for place, often in enumerate(times):
            weight += often * sizes[place]
            total += often * statistics.fmean(nats[other][s][place] - nats[best][s][place] for s in range(3))
        noise = chance * statistics.stdev(differences) / math.sqrt(3)
        values.append(total / math.log(2) / weight + noise)
    assert second.interval == pytest.approx(np.percentile(values, [2.5, 97.5]).tolist())
    assert first.interval is None


def test_what_chance_could_have_made_is_not_told_apart_and_a_clear_difference_is() -> None:
    def seeds(*bits: float) -> list[Curve]:
        return [curve((1, 1, [bit * 10 * math.log(2), bit * 30 * math.log(2)])) for bit in bits]

    found = standings({"a": seeds(1.0, 1.1, 0.9), "b": seeds(1.1, 1.0, 1.2), "c": seeds(2.0, 2.1, 1.9)}, "flops", 1.0)
    assert [(each.name, each.is_told_apart) for each in found] == [("a", False), ("b", False), ("c", True)]
    assert found[2].interval == pytest.approx((1.0, 1.0))  # the seeds differ alike, and so do the documents
    alone = standings({"a": seeds(1.0), "b": seeds(3.0)}, "flops", 1.0)
    assert [each.is_told_apart for each in alone] == [False, False]  # one seed says nothing about chance
    with pytest.raises(ValueError, match="not measured on the same held-out documents"):
        standings({"a": seeds(1.0), "b": [curve((1, 1, [1, 1]), raw_bytes=(10, 31))]}, "bytes", 1.0)


def test_agreement_is_the_share_of_pairs_in_the_same_order() -> None:
    assert agreement(["a", "b", "c"], ["a", "c", "b"]) == pytest.approx(2 / 3)
    assert agreement(["a", "b"], ["b", "a"]) == 0 and agreement(["a"], ["a"]) == 1


def test_a_comparison_of_tokenizers_ends_in_both_rankings(
    made: dict[str, list[Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(each.path) for name in ("byte_bpe", "blog") for each in made[name]]
    main([*paths, "--markdown"])
    shown = capsys.readouterr().out
    assert "## At equal bytes of text, 0.0" in shown and "## At equal FLOPs, " in shown
    main([*paths, "--csv", str(tmp_path / "table.csv")])
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 8  # two budgets, two tokenizers, two seeds
    for axis in ("bytes", "flops"):
        budget = min(lines_of(each)[-1][axis] for name in ("byte_bpe", "blog") for each in made[name])
        for name in ("byte_bpe", "blog"):
            its = [row for row in rows if row["at equal"] == axis and row["tokenizer"] == name]
            curves = [read_curve(lines_of(each)) for each in made[name]]
            values = [c.at(axis, budget).sum() / math.log(2) / c.raw_bytes.sum() for c in curves]
            assert [float(row["bits_per_byte"]) for row in its] == pytest.approx(values)
            assert [row["seed"] for row in its] == ["0", "1"] and {float(row["budget"]) for row in its} == {budget}


def test_tokenizers_that_cut_alike_get_the_same_value(made: dict[str, list[Run]]) -> None:
    curves = {name: [read_curve(lines_of(each)) for each in made[name]] for name in ("byte_bpe", "nfc")}
    budget = min(c.flops[-1] for of in curves.values() for c in of)
    first, second = standings(curves, "flops", budget)
    assert first.bits_per_byte == pytest.approx(second.bits_per_byte, abs=1e-6) and not second.is_told_apart


def test_a_table_of_one_tokenizer_is_refused(made: dict[str, list[Run]], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(made["blog"][0].path), "--csv", "x.csv"])
    assert "--csv: no two tokenizers have finished pretraining runs of one model" in capsys.readouterr().err
