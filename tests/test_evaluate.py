"""stage=evaluate end to end on a tiny model: its numbers are those that training saw, and what it refuses."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.data.corpus import is_held_out
from llm.errors import ConfigError, DamagedError, DataError
from llm.logger.live import RunLogger
from llm.run.record import write_record
from llm.run.runs import Run, load
from llm.stage.evaluate import table
from tests.rounding import rounding
from tests.test_evaluate_probes import NOUNS, PAIRS, form_of
from tests.test_stages import _quick_peak, run
from tests.tuned import copy_of, folder_of, train_first

__all__ = ["_quick_peak"]  # a fixture that every test here takes too

ROUNDING = rounding(330)  # the vocabulary
SMALL = ["evaluation.num_items=20", "evaluation.num_prompts=5", "evaluation.max_new_tokens=8", "logger=local"]


def texts() -> list[str]:
    """300 documents of three sentences, in which every noun stands with particles of every pair."""
    made = []
    for number in range(300):
        lines = []
        for place in range(3):
            noun, pair = NOUNS[(number + 3 * place) % len(NOUNS)], PAIRS[(number // 8 + place) % len(PAIRS)]
            lines.append(f"{number}번 {noun}{form_of(noun, pair)} 오늘 {place}시에 다시 보았다.")
        made.append("\n".join(lines))
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a pretraining and a fine-tuning, both named first."""
    return train_first(tmp_path_factory.mktemp("trained"), texts(), words=["tokenizer.initial_alphabet=none"])


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> Run:
    return run("evaluate", f"outputs={trained}", f"run={folder_of(trained, 'pretrain')}", *SMALL)


@pytest.fixture
def outputs(trained: Path, tmp_path: Path) -> Path:
    return copy_of(trained, tmp_path / "outputs")


def record_of(outputs: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((folder_of(outputs, stage) / "run.json").read_text(encoding="utf-8")))


def results_of(evaluation: Run) -> dict[str, Any]:
    return dict(json.loads((evaluation.path / "results.json").read_text(encoding="utf-8")))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_loss_of_held_out_text_is_what_training_measured_last(evaluated: Run, trained: Path) -> None:
    measured = record_of(trained, "pretrain")["results"]
    found = results_of(evaluated)
    held_out = [text for text in texts() if is_held_out(text, 0.2)]
    assert found["val/bits_per_byte"] == pytest.approx(measured["val/bits_per_byte"], rel=ROUNDING)
    assert found["val/loss"] == pytest.approx(measured["val/loss"], rel=ROUNDING)
    assert found["val/raw_bytes"] == sum(len(text.encode()) for text in held_out)
    assert evaluated.objective == found["val/bits_per_byte"]
    assert "answers/loss" not in found


def test_items_and_prompts_are_of_held_out_text_alone(evaluated: Run) -> None:
    held_out = "\n\n".join(text for text in texts() if is_held_out(text, 0.2))
    items = lines_of(evaluated.path / "probes.jsonl")
    assert all(item["choices"][0] in held_out and item["choices"][1] not in held_out for item in items)
    assert {item["probe"] for item in items} == {"particles", "next_sentence", "word_order"}
    written = lines_of(evaluated.path / "generations.jsonl")
    assert len(written) == 5 and all(line["prompt"] in held_out and line["tokens"] <= 8 for line in written)


def test_results_are_counts_of_the_items_with_their_interval(evaluated: Run) -> None:
    found, items = results_of(evaluated), lines_of(evaluated.path / "probes.jsonl")
    for name in ("particles", "next_sentence", "word_order"):
        right = [item["is_right"] for item in items if item["probe"] == name]
        assert (len(right) == 20 or name == "particles") and found[f"probe/{name}_items"] == len(right)
        low, share, high = (found[f"probe/{name}{end}"] for end in ("_low", "", "_high"))
        assert share == sum(right) / len(right) and 0 <= low <= share <= high <= 1
    for name in {item["kind"] for item in items if item["kind"]}:  # as many items after a consonant as after a vowel
        of_kind = [item for item in items if item["kind"] == name]
        words = [item["choices"][0].split()[1] for item in of_kind]
        assert sum(word.endswith(name.split("/")[0]) for word in words) * 2 == len(words)
        right = [item["is_right"] for item in of_kind]
        assert found[f"probe/particles/{name}"] == sum(right) / len(right)


def test_an_evaluation_is_a_run_that_is_found_again(evaluated: Run, trained: Path) -> None:
    base = record_of(trained, "pretrain")
    identity = evaluated.record["identity"]
    assert evaluated.path.name == f"first-{evaluated.key}"
    assert identity["parents"] == {"run": base["digest"], "shards": base["identity"]["parents"]["shards"]}
    assert set(evaluated.record["files"]) == {"config.yaml", "generations.jsonl", "probes.jsonl", "results.json"}
    before = (evaluated.path / "run.json").read_bytes()
    how = ["evaluation.batch_tokens=100", "evaluation.accelerator=cpu", "run=pretrain/*"]
    again = run("evaluate", f"outputs={trained}", *SMALL, *how)
    assert again.path == evaluated.path and (again.path / "run.json").read_bytes() == before


def test_how_it_is_carried_out_changes_no_number(evaluated: Run, outputs: Path) -> None:
    how = ["evaluation.batch_tokens=50", "reuse=never"]
    again = run("evaluate", f"outputs={outputs}", f"run={folder_of(outputs, 'pretrain')}", *SMALL, *how)
    assert again.results == pytest.approx(evaluated.results, rel=ROUNDING)
    written = [(run.path / "generations.jsonl").read_bytes() for run in (again, evaluated)]
    assert written[0] == written[1]


def test_a_tuned_run_is_asked_for_the_answers_it_held_out(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, tuned = record_of(trained, "pretrain"), record_of(trained, "finetune")
    found = run("evaluate", f"outputs={trained}", "run=first", *SMALL)
    assert "first is a pretrained and a fine-tuned run; the fine-tuned one is meant" in caplog.text
    results = results_of(found)
    assert results["answers/loss"] == pytest.approx(tuned["results"]["val/loss"], rel=ROUNDING)
    assert results["answers/conversations"] == tuned["results"]["held_out_records"]
    assert found.objective == results["answers/loss"]
    assert results["val/loss"] != base["results"]["val/loss"]
    assert found.record["identity"]["parents"] == {
        "run": tuned["digest"],
        "shards": base["identity"]["parents"]["shards"],
        "base": base["digest"],
        "data": tuned["identity"]["parents"]["data"],
    }
    prompts = [line["prompt"] for line in lines_of(found.path / "generations.jsonl")]
    assert all(is_held_out(prompt, 0.2) and prompt.endswith("번 사람은 어디에 있나요?") for prompt in prompts)


def test_the_logger_has_the_numbers_of_results_json(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(RunLogger, "summarize", lambda _self, results: sent.append(results))
    found = run("evaluate", f"outputs={outputs}", "run=first", *SMALL, "reuse=never")
    numbers = {name: value for name, value in results_of(found).items() if isinstance(value, int | float)}
    assert sent == [found.results] and numbers == found.results | {"seed": 0}


def test_parts_can_be_left_out(outputs: Path) -> None:
    found = run(
        "evaluate", f"outputs={outputs}", "run=first", *SMALL, "evaluation.num_items=0", "evaluation.num_prompts=0"
    )
    assert not [name for name in results_of(found) if name.startswith(("probe/", "writing/"))]
    assert not (found.path / "generations.jsonl").exists()


def test_the_table_shows_each_number_with_chance_and_interval() -> None:
    share = {"probe/particles": 0.75, "probe/particles_low": 0.3, "probe/particles_high": 0.954}
    numbers = {
        "val/loss": 3.25,
        "writing/prompts": 5,
        **share,
        "probe/particles_items": 4,
        "probe/particles/은/는": 0.5,
    }
    assert table(numbers).rows == [
        ["val/loss", "3.2500", "", "", ""],
        ["writing/prompts", "5", "", "", ""],
        ["probe/particles", "0.7500", "0.3000 to 0.9540", "0.5", "4"],
        ["probe/particles/은/는", "0.5000", "", "", ""],
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run=tokenizer/*", "is a tokenizer run, but a pretrain or finetune run is needed. Runs: "),
        ("evaluation.max_new_tokens=64", "max_new_tokens=64 is out of range: prompt and text share 64 tokens in first"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(trained: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run("evaluate", f"outputs={trained}", "run=first", *SMALL, override)


def test_tasks_without_lm_eval_name_the_extra(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = import_module("llm.stage.evaluate")
    monkeypatch.setattr(subject, "find_spec", lambda _name: None)
    with pytest.raises(
        ConfigError, match=r"lm-eval, which is not installed. Install the extra: pip install -e '.\[eval\]'"
    ):
        run("evaluate", f"outputs={trained}", "run=first", *SMALL, "evaluation.tasks=[kobest_copa]")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_one_line(trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.accelerator=gpu, but torch can use no GPU here"):
        run("evaluate", f"outputs={trained}", "run=first", *SMALL, "evaluation.accelerator=gpu")


def test_conversations_that_changed_since_the_tuning_are_refused(trained: Path) -> None:
    path = trained.parent / "chats.jsonl"
    before = path.read_bytes()
    try:
        path.write_bytes(before[: before.index(b"\n") + 1])
        with pytest.raises(DataError, match=r"it is not known which answers that held out. Put it back as it was"):
            run("evaluate", f"outputs={trained}", "run=first", *SMALL)
    finally:
        path.write_bytes(before)


def test_shards_that_were_made_anew_are_refused(outputs: Path) -> None:
    shards = folder_of(outputs, "shards")
    write_record(shards, load(shards).record | {"digest": "0" * 64})
    with pytest.raises(DamagedError, match=r"was trained on other shards than .* holds now"):
        run("evaluate", f"outputs={outputs}", "run=pretrain/*", *SMALL)


def test_weights_that_are_damaged_are_refused(outputs: Path) -> None:
    path = folder_of(outputs, "pretrain") / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x00")
    with pytest.raises(DamagedError, match=r"model.safetensors is not what run.json says"):
        run("evaluate", f"outputs={outputs}", "run=pretrain/*", *SMALL)
