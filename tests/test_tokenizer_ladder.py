"""The vocabulary ladder: a smaller BPE is cut from a larger one, and is what training it would have given."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm.config.data import DataConfig, DataKind
from llm.config.stages import TokenizerStage
from llm.config.sweeping import ladder_overrides
from llm.config.tokenizer import TokenizerConfig
from llm.errors import ConfigError
from llm.tokenizer.training import cut, train, why_not_cut
from tests import test_stages
from tests.korean import HARD_TEXTS, documents, preset

ROOT = Path(__file__).parents[1]
LADDER = ["byte_bpe", "byte_bpe_gpt4", "byte_bpe_qwen2", "char_bpe", "gpt2_bpe", "jamo"]
CORPUS = [*documents(400), *HARD_TEXTS.values()]


def state(config: TokenizerConfig) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(train(config, iter(CORPUS)).to_str())
    return made


@pytest.mark.parametrize("name", LADDER)
def test_a_cut_equals_direct_training_at_every_size(name: str) -> None:
    changes = {"decoder": "Fuse"} if name == "jamo" else {}  # its own is long, and nothing to do with it
    large = train(preset(name, vocab_size=6000, **changes), iter(CORPUS))
    full, characters = large.get_vocab_size(), 2900 if name == "char_bpe" else 500
    assert full > characters + 100
    for size in (characters, full - 1, full + 100):
        assert json.loads(cut(large, size).to_str()) == state(preset(name, vocab_size=size, **changes))


def test_a_cut_below_the_characters_keeps_them_as_training_does() -> None:
    config = preset("gpt2_bpe", initial_alphabet="none", vocab_size=400)
    large = train(config, iter(CORPUS))
    small = preset("gpt2_bpe", initial_alphabet="none", vocab_size=20)
    assert json.loads(cut(large, 20).to_str()) == state(small)
    assert cut(large, 20).get_vocab_size() > 20


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("blog", {}, "prefix or suffix in no fixed order"),
        ("bert_wordpiece", {}, "WordPiece training is not"),
        ("unigram", {}, "Unigram training is not"),
        ("xlnet_unigram", {}, "Unigram training is not"),
        ("superword_bpe", {}, "superwords come after merges"),
        ("byte_bpe", {"limit_alphabet": 300}, "equally frequent in no fixed order"),
    ],
)
def test_what_is_not_nested_is_not_cut(name: str, changes: dict[str, object], reason: str) -> None:
    assert reason in str(why_not_cut(preset(name, **changes)))


def test_every_other_preset_is_cut() -> None:
    assert [name for name in LADDER if why_not_cut(preset(name))] == []


def stage(**settings: Any) -> TokenizerStage:
    tokenizer = preset("byte_bpe", **settings)
    data = DataConfig(name="text", kind=DataKind.text, path="x.txt")
    return TokenizerStage(stage="tokenizer", tokenizer=tokenizer, data=data)


def test_the_jobs_of_a_sweep_are_cut_from_the_largest_that_differs_in_nothing_but_size() -> None:
    other = stage(vocab_size=900)
    other.data.held_out_share = 0.5
    jobs = [stage(vocab_size=300), stage(vocab_size=500), stage(vocab_size=400, min_frequency=3), stage(ladder=9000)]
    assert ladder_overrides([*jobs, other]) == [["tokenizer.ladder=500"], [], [], [], []]
    assert ladder_overrides([stage(vocab_size=300)]) == [[]]


def test_a_ladder_below_the_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer.ladder=300 is smaller than tokenizer.vocab_size=400.*to null"):
        preset("byte_bpe", vocab_size=400, ladder=300)


def test_a_sweep_over_sizes_trains_once_and_cuts_the_rest_as_single_runs_train_them(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(documents(300)), encoding="utf-8")
    data = ["data=text", f"data.path={tmp_path / 'text.txt'}", "data.held_out_share=0.1", "logger=local"]
    grid = ["stage=tokenizer", "tokenizer=byte_bpe,blog", "tokenizer.vocab_size=300,330"]
    command = [sys.executable, "train.py", "-m", *grid, *data, f"outputs={tmp_path / 'swept'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stderr + "".join(path.read_text() for path in tmp_path.glob("swept/sweeps/*/jobs/*/console.log"))
    made = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("swept/tokenizer/*/run.json")}
    assert len(made) == 4
    cut_from = {
        name: Path(record["notes"]["cut_from"]).name for name, record in made.items() if "cut_from" in record["notes"]
    }
    [(small, large)] = cut_from.items()
    assert small.startswith("byte_bpe-300-text-") and large.startswith("byte_bpe-330-text-")
    assert said.count("learns from") == 3  # byte_bpe at 330, and the two of the blog
    assert "not cut from tokenizer.ladder=330, but trained by itself: the library numbers symbols" in said
    alone = test_stages.run(
        "tokenizer", "tokenizer=byte_bpe", "tokenizer.vocab_size=300", *data, f"outputs={tmp_path / 'alone'}"
    ).record
    assert (alone["key"], alone["digest"]) == (made[small]["key"], made[small]["digest"])
    assert "cut_from" not in alone["notes"]
    speed = "encode_megabytes_per_second"
    assert alone["results"] | {speed: 0} == made[small]["results"] | {speed: 0}
