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
from llm.tokenizer import cut, train, why_not_reproducible
from tests.korean import HARD_TEXTS, documents, preset

ROOT = Path(__file__).parents[1]
LADDER = ["byte_bpe", "byte_bpe_gpt4", "byte_bpe_qwen2", "char_bpe", "gpt2_bpe", "jamo"]
CORPUS = [*documents(1500), *HARD_TEXTS.values()]


def state(config: TokenizerConfig) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(train(config, iter(CORPUS)).to_str())
    return made


@pytest.mark.parametrize("name", LADDER)
def test_a_cut_equals_direct_training_at_every_size(name: str) -> None:
    large = train(preset(name, vocab_size=6000), iter(CORPUS))
    full, characters = large.get_vocab_size(), 2900 if name == "char_bpe" else 500
    assert full > characters + 100
    for size in (characters, characters + 57, full - 1, full, full + 100):
        assert json.loads(cut(large, size).to_str()) == state(preset(name, vocab_size=size))


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
        ("byte_bpe", {"limit_alphabet": 300}, "equally frequent in no fixed order"),
    ],
)
def test_what_is_not_nested_is_not_cut(name: str, changes: dict[str, object], reason: str) -> None:
    assert reason in str(why_not_reproducible(preset(name, **changes)))


def test_every_other_preset_is_cut() -> None:
    assert [name for name in LADDER if why_not_reproducible(preset(name))] == []


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


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(where a sweep over three sizes, the smallest first, left its runs; what it and its jobs said)."""
    folder = tmp_path_factory.mktemp("ladder")
    (folder / "text.txt").write_text("\n\n".join(documents(300)), encoding="utf-8")
    words = ["-m", "stage=tokenizer", "tokenizer=byte_bpe,blog", "tokenizer.vocab_size=300,330,360", "data=text"]
    said = sweep(folder, *words)
    return folder, said + "".join(path.read_text() for path in folder.glob("outputs/sweeps/*/jobs/*/console.log"))


def sweep(folder: Path, *words: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(ROOT / "train.py"), *words, f"data.path={folder / 'text.txt'}"]
    command += ["data.held_out_share=0.1", "logger=local", f"outputs={folder / 'outputs'}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def records(folder: Path) -> dict[str, dict[str, Any]]:
    paths = folder.glob("outputs/tokenizer/*/run.json")
    return {path.parent.name.rsplit("-", 1)[0]: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def test_a_sweep_over_sizes_trains_once_and_cuts_the_rest(swept: tuple[Path, str]) -> None:
    folder, said = swept
    made = records(folder)
    assert len(made) == 6
    cut_from = {name: record["notes"].get("cut_from", "").rsplit("/", 1)[-1] for name, record in made.items()}
    largest = next((folder / "outputs/tokenizer").glob("byte_bpe-360-text-*")).name
    assert {name for name, parent in cut_from.items() if parent == largest} == {
        "byte_bpe-300-text",
        "byte_bpe-330-text",
    }
    assert all(not cut_from[name] for name in made if name.startswith("blog") or "360" in name)
    assert said.count("cut from") == 2 + said.count("not cut from tokenizer.ladder=360")
    assert "not cut from tokenizer.ladder=360, but trained by itself: the library numbers symbols" in said
    assert said.count("learns from") == 4  # byte_bpe at 360, and the three of the blog


def test_what_a_sweep_cut_is_what_a_single_run_trains(swept: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = swept
    (tmp_path / "text.txt").write_bytes((folder / "text.txt").read_bytes())
    sweep(tmp_path, "stage=tokenizer", "tokenizer=byte_bpe", "tokenizer.vocab_size=330", "data=text")
    alone, in_sweep = records(tmp_path)["byte_bpe-330-text"], records(folder)["byte_bpe-330-text"]
    assert (alone["key"], alone["digest"]) == (in_sweep["key"], in_sweep["digest"])
    assert "cut_from" not in alone["notes"]
    speed = "encode_megabytes_per_second"
    assert alone["results"] | {speed: 0} == in_sweep["results"] | {speed: 0}


def test_a_sweep_that_is_started_again_makes_nothing(swept: tuple[Path, str]) -> None:
    folder, _ = swept
    again = sweep(
        folder, "-m", "stage=tokenizer", "tokenizer=byte_bpe", "tokenizer.vocab_size=300,330,360", "data=text"
    )
    assert again.count("reused") == 3 and "learns from" not in again and "cut from" not in again
