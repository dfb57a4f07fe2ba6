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
from llm.config.data import PartConfig
from llm.config.fields import identity_settings
from llm.config.stages import ShardsStage
from llm.data import MixedRows, TokenRows, TrainingBatches, open_corpus, open_texts, read_manifest, share_out
from llm.data.mixed_shards import parts_of
from llm.data.order import EvaluationBatches, Share, mixed, pool_order
from llm.data.split import is_held_out
from llm.errors import ConfigError
from llm.model import load, next_token_nats
from llm.run.metrics import read_metrics
from llm.run.runs import Run
from llm.stage import run_stage
from llm.verify import verify, with_parents
from tests.korean import documents, sentences
from tests.test_config import config_of, refused
from tests.test_stages import TINY, _log, _quick_peak, compose, run, runs

__all__ = ["_log", "_quick_peak"]  # fixtures that every test here takes too


LAW = "law: {use: korean_law, weight: 3}"


@pytest.mark.parametrize("name", ["my-data.v2", "data.path", "my-data=1.txt"])
def test_a_part_whose_files_are_not_there_is_refused_by_their_true_name(tmp_path: Path, name: str) -> None:
    data = config_of(
        "stage=tokenizer", "data=mixture", f"data.parts={{books: {{use: text, path: '{tmp_path}/{name}'}}}}"
    ).data
    with pytest.raises(ConfigError) as refusal:
        open_texts(data)
    assert str(refusal.value).startswith(f"data.parts.books.path={tmp_path}/{name} does not exist. ")


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
    assert (law.source.name, law.cleaning.level.name, law.bad_records.name) == ("korean_law", "off", "drop")
    alone = config_of("data=korean_wikipedia", "data.path=x", "data.layout.skip=[a]", "data.cleaning.level=strict",
                      "data.bad_records=drop").data  # fmt: skip
    assert identity_settings(wiki, "shards") == identity_settings(alone, "shards")


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


def test_one_part_can_be_changed_where_a_yaml_names_it() -> None:
    data = config_of("data=mixture", "+data.parts.law.use=korean_law", "+data.parts.law.weight=2").data
    assert data.parts["law"].weight == 2


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("weight", 2, {"tokenizer", "shards", "pretrain"}),
        ("max_bytes", 9, {"tokenizer", "shards", "pretrain"}),
        ("max_tokens", 9, {"shards", "pretrain"}),
        ("text_field", "body", {"tokenizer", "shards"}),
        ("path", "y", set()),
    ],
)
def test_a_key_of_a_part_is_in_the_identity_of_what_it_changes(key: str, value: Any, stages: set[str]) -> None:
    def settings(stage: str, **more: Any) -> Any:
        part = {"use": "text", "path": "x", "weight": 1} | more
        typed = ", ".join(f"{name}: {value}" for name, value in part.items())
        return identity_settings(config_of(f"stage={stage}", "data=mixture", f"data.parts={{a: {{{typed}}}}}"))

    changed = {s for s in ("tokenizer", "shards", "pretrain") if settings(s) != settings(s, **{key: value})}
    assert changed == stages


def test_what_is_no_mixture_has_the_identity_that_it_had() -> None:
    assert not {"parts", "tokenizer_part"} & identity_settings(config_of())["data"].keys()


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


def test_no_batch_of_an_evaluation_has_rows_of_two_parts() -> None:
    seen = [
        batch.rows.tolist()
        for rank in range(2)
        for batch in EvaluationBatches(np.ones(10), batch_size=4, rank=rank, world_size=2, edges=[0, 3, 9])
    ]
    assert sorted(seen) == [[0, 1, 2], [3, 4, 5, 6], [7, 8], [9]]


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


def test_a_text_is_on_one_side_of_the_split_in_every_part(tmp_path: Path) -> None:
    data = config_of("data=mixture", parts(tmp_path), "data.held_out_share=0.2").data
    sides = {
        held_out: [set(open_corpus(data.part(name)).texts(held_out=held_out)) for name in data.parts]
        for held_out in (False, True)
    }
    assert all(not training & held_out for training in sides[False] for held_out in sides[True])
    assert sides[True][0] & sides[True][1]  # there are some that both parts have
    mixed_texts = set(open_texts(data).texts(held_out=True))
    assert mixed_texts == sides[True][0] | sides[True][1] and all(is_held_out(text, 0.2) for text in mixed_texts)


def test_a_tokenizer_learns_from_the_parts_in_their_proportions(tmp_path: Path) -> None:
    data = config_of("data=mixture", parts(tmp_path, **WEIGHTS), "data.held_out_share=0.1").data
    own = {name: Counter(open_corpus(data.part(name)).texts(held_out=False)) for name in ("small", "large")}
    size = {name: sum(len(t.encode()) * times for t, times in texts.items()) for name, texts in own.items()}
    texts = list(open_texts(data).texts(held_out=False))
    whole = sum(size.values())
    large, small = texts[: -(small_count := _count_tail(texts, own["small"]))], texts[-small_count:]
    assert sum(len(text.encode()) for text in large) == pytest.approx(0.4 * whole, rel=0.1)
    assert sum(len(text.encode()) for text in small) == pytest.approx(0.6 * whole, rel=0.1)
    times = Counter(small)
    lowest = math.floor(0.6 * whole / size["small"])
    assert {times[text] // own["small"][text] for text in own["small"]} == {lowest, lowest + 1}


def _count_tail(texts: list[str], own: Counter[str]) -> int:
    """How many texts at the end are all of one part (the parts come by name)."""
    count = 0
    while count < len(texts) and texts[-1 - count] in own:
        count += 1
    return count


def test_without_weights_a_tokenizer_learns_from_each_text_once_and_a_cap_bounds_it(tmp_path: Path) -> None:
    data = config_of("data=mixture", parts(tmp_path), "data.held_out_share=0.1").data
    own = {name: list(open_corpus(data.part(name)).texts(held_out=False)) for name in ("large", "small")}
    assert list(open_texts(data).texts(held_out=False)) == own["large"] + own["small"]
    capped = config_of("data=mixture", parts(tmp_path, large=", max_bytes: 20000"), "data.held_out_share=0.1").data
    texts = list(open_texts(capped).texts(held_out=False))
    assert texts[-len(own["small"]) :] == own["small"]
    assert sum(len(text.encode()) for text in texts[: -len(own["small"])]) == pytest.approx(20000, rel=0.15)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed") / "outputs"


def pretrain(outputs: Path, *overrides: str, **more: str) -> Run:
    typed = parts(outputs.parent, **more)
    return run("pretrain", "data=mixture", typed, f"outputs={outputs}", *TINY, *overrides)


def test_a_mixture_trains_and_measures_each_part(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = pretrain(outputs, **WEIGHTS)
    shards = parts_of(made.parent("shards"))
    assert list(shards) == ["large", "small"]
    model = load(made.path / "model").eval()
    nats = {}
    for name, part in shards.items():
        manifest = read_manifest(part.path / "shards")
        rows = TokenRows(part.path / "shards", manifest, manifest.held_out, sequence_length=64)
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
    assert "small: " in caplog.text and "in 4 steps each is seen" in caplog.text


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


def rows_of(outputs: Path, **more: str) -> tuple[MixedRows, dict[str, PartConfig]]:
    """The training rows of a mixture whose tokenizer learns from one part."""
    config = compose("pretrain", "data=mixture", parts(outputs.parent, **more), f"outputs={outputs}", *TINY,
                     "data.tokenizer_part=small")  # fmt: skip
    made = run_stage(ShardsStage(stage="shards", outputs=config.outputs, tokenizer=config.tokenizer, data=config.data))
    rows = {}
    for name, part in parts_of(made).items():
        manifest = read_manifest(part.path / "shards")
        rows[name] = TokenRows(part.path / "shards", manifest, manifest.train, sequence_length=64)
    return MixedRows(rows), config.data.parts


def test_weights_are_shares_of_bytes_and_sizes_are_those_of_parts_without(outputs: Path) -> None:
    rows, given = rows_of(outputs, **WEIGHTS)
    shares = share_out(rows, given)
    text = {name: Fraction(rows.parts[name].raw_bytes, len(rows.parts[name])) * s.places for name, s in shares.items()}
    assert float(text["small"] / sum(text.values())) == pytest.approx(0.6, abs=1 / len(rows))
    rows, given = rows_of(outputs)
    assert {name: (s.places, s.pool) for name, s in share_out(rows, given).items()} == {
        name: (len(part), len(part)) for name, part in rows.parts.items()
    }


def test_a_cap_leaves_as_many_rows_as_have_its_tokens(outputs: Path) -> None:
    rows, given = rows_of(outputs, large=", max_tokens: 1000")
    share = share_out(rows, given)["large"]
    labels = rows.parts["large"].num_labels[pool_order(share.num_rows, share.num_rows)]
    assert labels[: share.pool].sum() <= 1000 < labels[: share.pool + 1].sum()
    assert share.places == share.pool
    rows, given = rows_of(outputs, large=", max_tokens: 10")
    with pytest.raises(ConfigError, match=r"^data\.parts\.large\.max_tokens=10 is less than a row of \d+ tokens\. "):
        share_out(rows, given)
    rows, given = rows_of(outputs, large=", max_bytes: 10")
    with pytest.raises(ConfigError, match=r"^data\.parts\.large\.max_bytes=10 is less than a row of \d+ tokens\. "):
        share_out(rows, given)


def test_rows_of_a_mixture_are_those_of_its_parts(outputs: Path) -> None:
    rows, _ = rows_of(outputs)
    large = rows.parts["large"]
    picked = np.array([len(large), 3, len(large) + 2, 0])
    batches = EvaluationBatches(rows.num_labels, batch_size=4)
    batch = next(iter(batches))
    mixed_batch = rows.__getitems__(type(batch)(0, picked, 7))
    for place, row in enumerate(picked):
        part, within = ("large", row) if row < len(large) else ("small", row - len(large))
        alone = rows.parts[part].__getitems__(type(batch)(0, np.array([within]), 7))
        for key in ("input_ids", "labels", "position_ids"):
            assert torch.equal(mixed_batch[key][place], alone[key][0])
    assert mixed_batch["num_labels"] == 7
    assert [line.split()[0] for line in rows.describe(picked)] == ["small", "large", "small", "large"]


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
    assert {found.path for found in with_parents([made])} == {
        made.path, made.parent("tokenizer").path, *(part.path for part in parts_of(made).values()),
    }  # fmt: skip
    assert [verify(found)[1] for found in with_parents([made])] == [[]] * 4


def test_text_that_is_repeated_often_is_warned_of(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = pretrain(outputs, "trainer.max_steps=60", "data.tokenizer_part=small", "trainer.validate_every_steps=60",
                    small=", weight: 9, max_tokens: 900", large=", weight: 1")  # fmt: skip
    assert "data.parts.small is repeated" in caplog.text
    share = made.results["epochs/small"]
    assert share > 4
    assert f"data.parts.small is repeated {share:.1f} times: past 4, text is worth ever less." in caplog.text
    assert "data.parts.large is repeated" not in caplog.text


def test_a_part_that_is_not_there_is_named_before_any_work(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", documents(20))
    typed = f"{{a: {{use: text, path: {tmp_path / 'a.jsonl'}}}, b: {{use: text, path: {tmp_path / 'no'}}}}}"
    with pytest.raises(ConfigError, match=r"^data\.parts\.b\.path=.*no does not exist\. "):
        run("pretrain", "data=mixture", f"data.parts={typed}", "data.tokenizer_part=a", f"outputs={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
