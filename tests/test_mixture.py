"""data=mixture: what a user may type, the order of its rows, its tokenizer's text, and training on it."""

import json
import math
import re
import shlex
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm.compare.entries import Entry
from llm.compare.ranking import rank
from llm.config.fields import identity_settings
from llm.config.stages import ShardsStage
from llm.data.corpus import is_held_out, open_corpus
from llm.data.documents import read_texts, write_documents
from llm.data.mixture import ROLE, rows_of, sources_of, texts_in_proportion
from llm.data.order import EvaluationBatches, MicroBatch, Share, TrainingBatches, mixed, pool_order
from llm.data.rows import TokenRows
from llm.data.shards import read_manifest
from llm.errors import ConfigError
from llm.model import load, next_token_nats
from llm.run.models import with_parents
from llm.run.record import read_metrics
from llm.run.runs import Run
from llm.stage import run_stage
from llm.verify import verify
from tests.korean import documents, sentences
from tests.test_config import config_of, refused
from tests.test_stages import TINY, _quick_peak, compose, run, runs

__all__ = ["_quick_peak"]  # a fixture that every test here takes too


def test_a_choice_with_another_held_out_share_is_refused(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(Path(__file__).parents[1] / "conf", conf)
    (conf / "data" / "mine.yaml").write_text("kind: text\nheld_out_share: 0.2\n", encoding="utf-8")
    parts = "data.parts={a: {use: mine, path: x}}"
    line = "data.parts.a.use=mine holds out 0.2 of the documents, the mixture 0.01: texts would be on both sides"
    assert refused("data=mixture", parts, conf=conf).startswith(line)
    assert config_of("data=mixture", parts, "data.held_out_share=0.2", conf=conf).data.part("a").held_out_share == 0.2


def test_a_part_is_its_choice_under_the_cleaning_of_the_mixture_and_its_own_keys() -> None:
    parts = (
        "{wiki: {use: korean_wikipedia, path: x, layout: {skip: [a]}}, law: {use: korean_law, cleaning: {level: off}}}"
    )
    data = config_of("data=mixture", f"data.parts={parts}", "data.cleaning.level=strict", "data.bad_records=drop").data
    wiki, law = data.part("wiki"), data.part("law")
    assert (wiki.layout.require, wiki.layout.skip, wiki.cleaning.level.name) == ("title", ["a"], "strict")
    assert (law.path, law.cleaning.level.name, law.bad_records.name) == ("data/korean_law.jsonl", "off", "drop")
    alone = config_of("data=korean_wikipedia", "data.path=x", "data.layout.skip=[a]", "data.cleaning.level=strict",
                      "data.bad_records=drop").data  # fmt: skip
    assert identity_settings(wiki, "documents") == identity_settings(alone, "documents")


DOCS = (Path(__file__).parents[1] / "docs" / "mixtures.md").read_text(encoding="utf-8")


def test_the_documented_commands_and_file_compose(tmp_path: Path) -> None:
    (commands,) = re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL)
    found = [config_of(*shlex.split(line)[2:]).data for line in commands.splitlines()]
    assert [{name: part.weight for name, part in data.parts.items()} for data in found] == [
        {"books": 7, "law": 3},
        {"books": None, "law": None},
        {"books": None, "law": None},
    ]
    assert (found[1].parts["law"].max_bytes, found[2].tokenizer_part) == (2_000_000, "law")
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    conf = tmp_path / "conf"
    shutil.copytree(Path(__file__).parents[1] / "conf", conf)
    (conf / "data" / "my_mixture.yaml").write_text(example, encoding="utf-8")
    data = config_of("data=my_mixture", "data.parts.law.weight=5", conf=conf).data
    assert {name: part.weight for name, part in data.parts.items()} == {"books": 7, "law": 5}
    assert data.part("books").cleaning.level.name == "light"


def test_a_key_of_a_part_is_in_the_identity_of_what_it_changes() -> None:
    def settings(stage: str, **more: Any) -> Any:
        part = {"use": "text", "path": "x", "weight": 1} | more
        typed = ", ".join(f"{name}: {value}" for name, value in part.items())
        return identity_settings(config_of(f"stage={stage}", "data=mixture", f"data.parts={{a: {{{typed}}}}}"))

    plain = {stage: settings(stage) for stage in ("tokenizer", "shards", "pretrain")}
    changes: dict[str, Any] = {"weight": 2, "max_tokens": 9, "text_field": "body", "path": "y"}
    changed = {
        key: {stage for stage in plain if settings(stage, **{key: value}) != plain[stage]}
        for key, value in changes.items()
    }
    assert changed == {
        "weight": {"tokenizer", "shards", "pretrain"},
        "max_tokens": {"shards", "pretrain"},
        "text_field": set(),  # which is in that of its documents
        "path": set(),
    }


SHARES = [Share(0, 7, 7, 21), Share(7, 50, 50, 30), Share(57, 20, 5, 9)]


def test_each_epoch_of_a_mixture_has_the_places_of_each_part_and_a_part_its_rows_equally_often() -> None:
    rows = mixed(np.arange(3 * 60), SHARES, seed=5)
    for epoch in rows.reshape(3, 60):
        assert [int(((epoch >= s.first_row) & (epoch < s.first_row + s.num_rows)).sum()) for s in SHARES] == [21, 30, 9]
        assert set(Counter(epoch[epoch < 7].tolist()).values()) == {3}  # 21 places of 7 rows
    counts = Counter(rows[(rows >= 7) & (rows < 57)].tolist())  # 90 places of 50 rows
    assert sorted(counts.values()) == [1] * 10 + [2] * 40
    assert {row - 57 for row in rows if row >= 57} == set(pool_order(20, 5).tolist())


def test_the_order_of_a_mixture_is_a_function_of_seed_and_place_alone() -> None:
    places = np.arange(500)
    whole = mixed(places, SHARES, seed=5)
    assert [int(mixed(np.array([place]), SHARES, seed=5)[0]) for place in places] == whole.tolist()
    assert (mixed(places, SHARES, seed=6) != whole).mean() > 0.5
    assert not np.array_equal(whole[:60], whole[60:120])


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_share_the_steps_of_a_mixture_and_a_resumed_run_goes_on_in_it(world_size: int) -> None:
    num_labels = np.arange(77) + 1

    def steps(rank: int, start: int = 0) -> list[list[int]]:
        batches = TrainingBatches(num_labels, batch_size=8, micro_batch_size=4, num_steps=70, seed=3, rank=rank,
                                  world_size=world_size, shares=SHARES)  # fmt: skip
        batches.start_step = start
        return [batch.rows.tolist() for step in batches for batch in step]

    together = [step for pair in zip(*(steps(rank) for rank in range(world_size)), strict=True) for step in pair]
    reference = mixed(np.arange(70 * 8), SHARES, seed=3)
    assert sorted(row for rows in together for row in rows) == sorted(reference.tolist())
    assert steps(0, start=66) == steps(0)[66 * 2 // world_size :]


def write(path: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def parts(folder: Path, **more: str) -> str:
    """The override that mixes two small corpora, the second of which has half of the first one's documents."""
    small, large = documents(150, seed=1), documents(450, seed=2)
    write(folder / "small.jsonl", small)
    write(folder / "large.jsonl", small[:75] + large)
    typed = [f"{name}: {{use: text, path: {folder / name}.jsonl{more.get(name, '')}}}" for name in ("small", "large")]
    return f"data.parts={{{', '.join(typed)}}}"


WEIGHTS = {"small": ", weight: 3", "large": ", weight: 2"}


def texts_of(folder: Path, **more: str) -> tuple[dict[str, list[str]], list[str]]:
    """(the training texts of each part, those that a tokenizer learns from)."""
    data = config_of("data=mixture", parts(folder, **more), "data.held_out_share=0.1").data
    sizes = {}
    for name in data.parts:
        made = write_documents(open_corpus(data.part(name)), folder / f"documents-{name}")
        sizes[name] = made["train"]["raw_bytes"]
    folders = {name: folder / f"documents-{name}" for name in data.parts}
    own = {name: list(read_texts(of_part, "train")) for name, of_part in folders.items()}
    return own, list(texts_in_proportion(folders, sizes, data.parts))


def test_a_tokenizer_learns_from_the_parts_in_their_proportions(tmp_path: Path) -> None:
    own, texts = texts_of(tmp_path, **WEIGHTS)
    size = {name: sum(len(text.encode()) for text in texts) for name, texts in own.items()}
    whole = sum(size.values())
    small = texts[next(n for n in range(len(texts)) if set(texts[n:]) <= set(own["small"])) :]  # the parts come by name
    large = texts[: -len(small)]
    assert sum(len(text.encode()) for text in large) == pytest.approx(0.4 * whole, rel=0.1)
    assert sum(len(text.encode()) for text in small) == pytest.approx(0.6 * whole, rel=0.1)
    times, lowest = Counter(small), math.floor(0.6 * whole / size["small"])
    assert {times[text] // own["small"].count(text) for text in own["small"]} == {lowest, lowest + 1}


def test_without_weights_a_tokenizer_learns_from_each_text_once_and_a_cap_bounds_it(tmp_path: Path) -> None:
    own, texts = texts_of(tmp_path)
    assert texts == own["large"] + own["small"]
    own, texts = texts_of(tmp_path, large=", max_bytes: 20000")
    assert texts[-len(own["small"]) :] == own["small"]
    assert sum(len(text.encode()) for text in texts[: -len(own["small"])]) == pytest.approx(20000, rel=0.15)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed") / "outputs"


def pretrain(outputs: Path, *overrides: str, **more: str) -> Run:
    typed = parts(outputs.parent, **more)
    return run("pretrain", "data=mixture", typed, f"outputs={outputs}", *TINY, *overrides)


def parts_of(shards: Run) -> dict[str, Run]:
    return {role.removeprefix(ROLE): shards.parent(role) for role in shards.places if role.startswith(ROLE)}


def test_a_mixture_trains_and_measures_each_part(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = pretrain(outputs, **WEIGHTS)
    shards = parts_of(made.parent("shards"))
    assert list(shards) == ["large", "small"]
    model = load(made.path / "model").eval()
    nats = {}
    for name, part in shards.items():
        manifest = read_manifest(part.path / "shards")
        rows = TokenRows({"": (part.path / "shards", manifest)}, "held_out", sequence_length=64)
        batches = EvaluationBatches(rows.num_labels, batch_size=1)
        with torch.no_grad():
            nats[name] = sum(float(next_token_nats(model, rows.__getitems__(batch))) for batch in batches)
        labels, text = int(rows.num_labels.sum()), rows.raw_bytes
        assert made.results[f"val/loss/{name}"] == pytest.approx(nats[name] / labels, rel=1e-5)
        assert made.results[f"val/bits_per_byte/{name}"] == pytest.approx(nats[name] / math.log(2) / text, rel=1e-5)
    text = sum(part.results["held_out"]["raw_bytes"] for part in shards.values())
    assert made.results["val/bits_per_byte"] == pytest.approx(sum(nats.values()) / math.log(2) / text, rel=1e-5)
    last = [record for record in read_metrics(made.path / "metrics.jsonl") if "val/loss" in record][-1]
    assert last["val/loss/small"] == made.results["val/loss/small"]
    assert "val/bits_per_byte/small" in rank([Entry(made)]).table.columns
    assert "small: " in caplog.text and "each is seen" in caplog.text


def test_a_part_has_the_shards_that_it_has_alone_under_the_same_tokenizer(outputs: Path) -> None:
    small = outputs.with_name("small.jsonl")
    made = pretrain(outputs, "data.tokenizer_part=small", **WEIGHTS)
    settings = [setting for setting in TINY if setting.startswith(("tokenizer.", "data."))]
    before = len(runs(outputs, "shards"))
    alone = run("shards", "data=text", f"data.path={small}", f"outputs={outputs}", *settings)
    assert alone.path == parts_of(made.parent("shards"))["small"].path
    assert len(runs(outputs, "shards")) == before


def test_another_weight_makes_no_other_shards_of_the_parts(outputs: Path) -> None:
    first = pretrain(outputs, "data.tokenizer_part=small", **WEIGHTS)
    second = pretrain(outputs, "data.tokenizer_part=small", small=", weight: 1", large=", weight: 2")
    assert first.key != second.key
    ours, theirs = (parts_of(made.parent("shards")) for made in (first, second))
    assert {name: run.path for name, run in ours.items()} == {name: run.path for name, run in theirs.items()}
    notes = rank([Entry(first), Entry(second)]).notes
    assert notes == []  # both are measured on the same text


def test_a_mixtures_totals_are_those_of_its_epoch(outputs: Path) -> None:
    shards = pretrain(outputs, **WEIGHTS).parent("shards")
    own = {name: run.results["train"] for name, run in parts_of(shards).items()}
    whole = sum(part["raw_bytes"] for part in own.values())
    tokens = 0.6 * whole / own["small"]["raw_bytes"] * own["small"]["tokens"]
    tokens += 0.4 * whole / own["large"]["raw_bytes"] * own["large"]["tokens"]
    assert (shards.results["train"]["raw_bytes"], shards.results["train"]["tokens"]) == (whole, round(tokens))
    assert shards.results["parts"]["small"]["epochs"] == pytest.approx(0.6 * whole / own["small"]["raw_bytes"])


def test_the_unigram_entropy_of_parts_by_size_is_that_of_all_their_tokens(outputs: Path) -> None:
    shards = pretrain(outputs).parent("shards")
    counts: Counter[int] = Counter()
    for part in parts_of(shards).values():
        manifest = read_manifest(part.path / "shards")
        for shard in manifest.train.shards:
            counts.update(np.fromfile(part.path / "shards" / shard.tokens_file, dtype=manifest.dtype).tolist())
            counts[manifest.bos_id] -= shard.documents
    total = sum(counts.values())
    bits = -sum(times * math.log2(times / total) for times in counts.values() if times)
    train = shards.results["train"]
    assert train["unigram_bits_per_byte"] == pytest.approx(bits / train["raw_bytes"], rel=1e-9)


def rows(outputs: Path, **more: str) -> TokenRows:
    """The training rows of a mixture whose tokenizer learns from one part."""
    config = compose("pretrain", "data=mixture", parts(outputs.parent, **more), f"outputs={outputs}", *TINY,
                     "data.tokenizer_part=small")  # fmt: skip
    made = run_stage(ShardsStage(stage="shards", outputs=config.outputs, tokenizer=config.tokenizer, data=config.data))
    return rows_of(sources_of(made), "train", sequence_length=64, parts=config.data.parts)


def test_weights_are_shares_of_bytes_and_sizes_are_those_of_parts_without(outputs: Path) -> None:
    mixed_rows = rows(outputs, **WEIGHTS)
    text = [
        Fraction(part.raw_bytes, len(part.num_labels)) * share.places
        for part, share in zip(mixed_rows.parts.values(), mixed_rows.shares, strict=True)
    ]
    assert float(text[1] / sum(text)) == pytest.approx(0.6, abs=1 / len(mixed_rows))
    mixed_rows = rows(outputs)
    sizes = [len(part.num_labels) for part in mixed_rows.parts.values()]
    assert [(share.places, share.pool) for share in mixed_rows.shares] == [(size, size) for size in sizes]


def test_a_cap_leaves_as_many_rows_as_have_its_tokens(outputs: Path) -> None:
    capped = rows(outputs, large=", max_tokens: 1000")
    share = capped.shares[0]
    labels = capped.parts["large"].num_labels[pool_order(share.num_rows, share.num_rows)]
    assert labels[: share.pool].sum() <= 1000 < labels[: share.pool + 1].sum()
    assert share.places == share.pool
    for key in ("max_tokens", "max_bytes"):
        with pytest.raises(ConfigError, match=rf"^data\.parts\.large\.{key}=10 is less than a row of \d+ tokens\. "):
            rows(outputs, large=f", {key}: 10")


def test_rows_of_a_mixture_are_those_of_its_parts_one_after_the_other(outputs: Path) -> None:
    made = sources_of(pretrain(outputs, **WEIGHTS).parent("shards"))
    together = rows_of(made, "held_out", sequence_length=64)
    alone = {name: rows_of({"": own}, "held_out", sequence_length=64) for name, own in made.items()}
    large, small = len(alone["large"]), len(alone["small"])
    assert len(together) == large + small and together.first_rows == [0, large]
    picked = [("small", 0), ("large", 1), ("small", small - 1), ("large", large - 1)]
    places = np.array([row + (large if name == "small" else 0) for name, row in picked])
    batch = together.__getitems__(MicroBatch(0, places, 7))
    for place, (name, row) in enumerate(picked):
        own = alone[name].__getitems__(MicroBatch(0, np.array([row]), 7))
        assert all(torch.equal(batch[key][place], own[key][0]) for key in ("input_ids", "labels", "position_ids"))
    assert batch["num_labels"] == 7
    assert [line.split()[0] for line in together.describe(places)] == [name for name, _ in picked]
    for total in ("raw_bytes", "lost_bytes"):
        assert getattr(together, total) == sum(getattr(rows, total) for rows in alone.values())
        assert [getattr(part, total) for part in together.parts.values()] == [
            getattr(alone[name], total) for name in ("large", "small")
        ]


def test_near_copies_in_the_training_text_of_another_part_are_counted(tmp_path: Path) -> None:
    long = [" ".join(sentences(12, seed=seed)) for seed in range(60)]
    pairs = [(text, text.replace("다", "네", 1)) for text in long]
    held_out, copy = next((a, b) for a, b in pairs if is_held_out(a, 0.1) and not is_held_out(b, 0.1))
    write(tmp_path / "a.jsonl", [*documents(200, seed=8), held_out])
    write(tmp_path / "b.jsonl", [*documents(200, seed=9), copy])
    typed = ", ".join(f"{name}: {{use: text, path: {tmp_path / name}.jsonl}}" for name in "ab")
    settings = [setting for setting in TINY if setting.startswith(("tokenizer.", "data."))]
    made = run("shards", "data=mixture", f"data.parts={{{typed}}}", f"outputs={tmp_path / 'outputs'}", *settings)
    leaks = made.record["notes"]["leaks"]
    assert {name: found["near_copies"] for name, found in leaks.items()} == {"a": 1, "b": 0}
    assert [part.record["notes"]["leaks"]["near_copies"] for part in parts_of(made).values()] == [0, 0]
    assert [found.stage for found in with_parents([made])] == ["documents", "documents", "tokenizer", *["shards"] * 3]
    assert [verify(found)[1] for found in with_parents([made])] == [[]] * 6


def test_text_that_is_repeated_often_is_warned_of(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = pretrain(outputs, "trainer.max_steps=24", "data.tokenizer_part=small", "trainer.validate_every_steps=24",
                    small=", weight: 9, max_tokens: 900", large=", weight: 1")  # fmt: skip
    assert "data.parts.small is repeated" in caplog.text
    share = made.results["epochs/small"]
    assert share > 4
    assert f"data.parts.small is repeated {share:.1f} times: past 4, text is worth ever less." in caplog.text
    assert "data.parts.large is repeated" not in caplog.text


def test_a_part_that_is_not_there_is_named_before_any_work(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", documents(20))
    typed = f"{{a: {{use: text, path: {tmp_path / 'a.jsonl'}}}, b: {{use: text, path: {tmp_path / 'my-data.v2'}}}}}"
    with pytest.raises(ConfigError, match=r"^data\.parts\.b\.path=.*/my-data\.v2 does not exist: "):
        run("pretrain", "data=mixture", f"data.parts={typed}", "data.tokenizer_part=a", f"outputs={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
