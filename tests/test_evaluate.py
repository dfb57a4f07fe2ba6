"""stage=evaluate end to end on tiny models: its numbers are those that training saw, and what it refuses."""

import json
import math
import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llm.data.corpus import is_held_out
from llm.dry_run.survey import survey
from llm.errors import ConfigError, DamagedError, DataError
from llm.logger.live import RunLogger
from llm.run.models import with_parents
from llm.run.record import read_metrics, write_record
from llm.run.runs import Run, load
from llm.stage.evaluate import table, uses_chat_template
from tests.korean import save_preset
from tests.rounding import rounding
from tests.test_evaluate_probes import NOUNS, PAIRS, form_of
from tests.test_pretrained import END, write_folder
from tests.test_pretrained import SHAPE as THEIR_SHAPE
from tests.test_stages import compose, run
from tests.tuned import (  # noqa: F401  # quick_peak is a fixture
    SHAPE,
    SPLIT,
    STEPS,
    copy_of,
    folder_of,
    quick_peak,
    train_first,
    tuning_on,
    write_lines,
)

ROUNDING = rounding(330)  # the vocabulary
SMALL = ["evaluation.num_items=20", "evaluation.num_prompts=5", "evaluation.max_new_tokens=8", "logger=local"]
FEW = ["evaluation.num_items=0", "evaluation.num_prompts=0"]


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


HELD_OUT = [text for text in texts() if is_held_out(text, 0.2)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a pretraining and a fine-tuning, both named first."""
    return train_first(tmp_path_factory.mktemp("trained"), texts(), words=["tokenizer.initial_alphabet=none"])


def evaluate(outputs: Path, subject: object, *overrides: str) -> Run:
    return run("evaluate", f"outputs={outputs}", f"run={subject}", *SMALL, *overrides)


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> Run:
    return evaluate(trained, folder_of(trained, "pretrain"))


@pytest.fixture
def outputs(trained: Path, tmp_path: Path) -> Path:
    return copy_of(trained, tmp_path / "outputs")


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """The pretrained model as anybody's: no run stands behind it."""
    target = Path(shutil.copytree(folder_of(trained, "pretrain") / "model", tmp_path / "their-model"))
    (target / "tokenizer.sha256").unlink()
    return target


def same_text(trained: Path) -> list[str]:
    return ["data=text", *SPLIT, f"data.path={trained.parent / 'text.jsonl'}"]


def record_of(outputs: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((folder_of(outputs, stage) / "run.json").read_text(encoding="utf-8")))


def results_of(evaluation: Run) -> dict[str, Any]:
    return dict(json.loads((evaluation.path / "results.json").read_text(encoding="utf-8")))


def numbers_of(evaluation: Run) -> dict[str, Any]:
    return {key: value for key, value in results_of(evaluation).items() if key != "run"}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# A run, on what it held out itself


def test_the_loss_of_held_out_text_is_what_training_measured_last(evaluated: Run, trained: Path) -> None:
    measured, found = record_of(trained, "pretrain")["results"], results_of(evaluated)
    assert found["val/bits_per_byte"] == pytest.approx(measured["val/bits_per_byte"], rel=ROUNDING)
    assert found["val/loss"] == pytest.approx(measured["val/loss"], rel=ROUNDING)
    assert found["val/raw_bytes"] == sum(len(text.encode()) for text in HELD_OUT)
    assert evaluated.objective == found["val/bits_per_byte"]
    assert "answers/loss" not in found


def test_items_and_prompts_are_of_held_out_text_alone(evaluated: Run) -> None:
    held_out = "\n\n".join(HELD_OUT)
    items = lines_of(evaluated.path / "probes.jsonl")
    assert all(item["choices"][0] in held_out and item["choices"][1] not in held_out for item in items)
    assert {item["probe"] for item in items} == {"particles", "next_sentence", "word_order"}
    assert evaluated.results["probe/word_order_items"] == sum(item["probe"] == "word_order" for item in items) == 20
    written = lines_of(evaluated.path / "generations.jsonl")
    assert len(written) == 5 and all(line["prompt"] in held_out and line["tokens"] <= 8 for line in written)


def test_an_evaluation_is_a_run_that_is_found_again(evaluated: Run, trained: Path) -> None:
    base = record_of(trained, "pretrain")
    identity = evaluated.record["identity"]
    assert evaluated.path.name == f"first-{evaluated.key}"
    assert identity["parents"] == {"run": base["digest"], "shards": base["identity"]["parents"]["shards"]}
    assert set(evaluated.record["files"]) == {"config.yaml", "generations.jsonl", "probes.jsonl", "results.json"}
    before = (evaluated.path / "run.json").read_bytes()
    again = evaluate(trained, "pretrain/*", "evaluation.batch_tokens=100", "evaluation.accelerator=cpu")
    assert again.path == evaluated.path and (again.path / "run.json").read_bytes() == before


def test_how_it_is_carried_out_changes_no_number_and_the_logger_has_them_all(
    evaluated: Run, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(RunLogger, "summarize", lambda _self, results: sent.append(results))
    again = evaluate(outputs, folder_of(outputs, "pretrain"), "evaluation.batch_tokens=50", "reuse=never")
    assert again.results == pytest.approx(evaluated.results, rel=ROUNDING)
    written = [(run.path / "generations.jsonl").read_bytes() for run in (again, evaluated)]
    assert written[0] == written[1]
    numbers = {name: value for name, value in results_of(again).items() if isinstance(value, int | float)}
    assert sent == [again.results] and numbers == again.results | {"seed": 0}


def test_a_tuned_run_is_asked_for_the_answers_it_held_out(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, tuned = record_of(trained, "pretrain"), record_of(trained, "finetune")
    found = evaluate(trained, "first")
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


def test_each_part_of_a_mixture_has_the_numbers_that_training_measured(tmp_path: Path) -> None:
    halves = {"first": texts()[:150], "second": [f"{text} 그리고 또 {n}번." for n, text in enumerate(texts()[150:])]}
    for name, part in halves.items():
        write_lines(tmp_path / f"{name}.jsonl", ({"text": text} for text in part))
    parts = ", ".join(f"{name}: {{use: text, path: {tmp_path / name}.jsonl}}" for name in halves)
    split, outputs = ["data=mixture", f"data.parts={{{parts}}}", *SPLIT], tmp_path / "outputs"
    words = ["tokenizer.vocab_size=330", "tokenizer.initial_alphabet=none"]
    run("pretrain", *split, *words, *SHAPE, *STEPS, f"outputs={outputs}", "name=mixed")
    found = evaluate(outputs, "mixed")
    trained_on = read_metrics(folder_of(outputs, "pretrain") / "metrics.jsonl")
    last = [record for record in trained_on if "val/loss" in record][-1]
    names = [f"val/{measure}{part}" for measure in ("loss", "bits_per_byte") for part in ("", "/first", "/second")]
    assert {name: found.results[name] for name in names} == pytest.approx({name: last[name] for name in names})
    prompts = [line["prompt"] for line in lines_of(found.path / "generations.jsonl")]
    assert len(prompts) == 5 and all(any(prompt in text for text in texts()) for prompt in prompts)
    of_folder = evaluate(outputs, folder_of(outputs, "pretrain") / "model", *split)
    assert {name: of_folder.results[name] for name in names} == {name: found.results[name] for name in names}


# What no run made, and text that is given


def test_a_folder_has_the_numbers_of_the_run_that_it_is_a_copy_of(trained: Path, folder: Path, evaluated: Run) -> None:
    """By its tokenizer, on the held-out side of the text: loss, probes, the very items, and what it writes."""
    found = evaluate(trained, folder, *same_text(trained))
    assert numbers_of(found) == numbers_of(evaluated)
    about = results_of(found)["run"]
    assert about | {"digest": ""} == {"folder": str(folder), "name": "their-model", "digest": ""}
    assert found.path.name.startswith("their-model-") and found.objective == found.results["val/bits_per_byte"]
    assert [each.stage for each in with_parents([found])] == ["documents", "evaluate"]
    assert not list(found.path.glob(".tmp-*"))


def test_bits_per_byte_of_a_folder_are_the_nats_of_each_document_alone(trained: Path, tmp_path: Path) -> None:
    """Of another architecture and another tokenizer, without a bos and with truncation, which must cut nothing."""
    torch.manual_seed(2)
    shape = THEIR_SHAPE | {"max_position_embeddings": 32768, "head_dim": 8}
    folder = write_folder(tmp_path / "llama", LlamaForCausalLM(LlamaConfig(**shape)))
    found = results_of(evaluate(trained, folder, *same_text(trained), "data.sequence_length=16384", *FEW))
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.no_truncation()
    model, end, nats, labels = AutoModelForCausalLM.from_pretrained(folder), words.token_to_id(END), 0.0, 0
    for text in HELD_OUT:
        ids = torch.tensor([[end, *words.encode(text).ids, end]])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double()
        nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        labels += ids.shape[1] - 1
    raw_bytes = sum(len(text.encode()) for text in HELD_OUT)
    assert (found["val/raw_bytes"], found["val/lost_bytes"]) == (raw_bytes, 0)
    assert found["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / raw_bytes, rel=ROUNDING)
    assert found["val/loss"] == pytest.approx(nats / labels, rel=ROUNDING)


def test_rows_of_so_many_bytes_are_rows_of_the_tokens_that_hold_them(trained: Path) -> None:
    pretrained = folder_of(trained, "pretrain")
    held_out = load(pretrained).parent("shards").results["held_out"]
    words = [word for word in same_text(trained) if not word.startswith("data.sequence_length")]
    length = 8 * round(100 * held_out["tokens"] / held_out["raw_bytes"] / 8)
    typed = results_of(evaluate(trained, pretrained, *words, f"data.sequence_length={length}", *FEW))
    found = results_of(evaluate(trained, pretrained, *words, "data.sequence_bytes=100", *FEW))
    assert found["val/bits_per_byte"] == typed["val/bits_per_byte"]
    with pytest.raises(ConfigError, match=r"^data\.sequence_bytes=9999 are \d+ tokens, more than the 64 that first"):
        evaluate(trained, pretrained, *words, "data.sequence_bytes=9999", *FEW)


def test_a_run_is_measured_on_other_text(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{n}째 줄에는 다른 글이 있다. " * 3 for n in range(80)]
    other = write_lines(tmp_path / "other.jsonl", ({"text": text} for text in lines))
    asked = ["data=text", *SPLIT, f"data.path={other}"]
    found = evaluate(trained, folder_of(trained, "pretrain"), *asked)
    assert found.results["val/raw_bytes"] == sum(len(text.encode()) for text in lines if is_held_out(text, 0.2))
    assert "data.held_out_share" not in caplog.text
    evaluate(trained, folder_of(trained, "pretrain"), *asked, "data.held_out_share=0.3", *FEW)
    assert "data.held_out_share=0.3 is more than the 0.2 that first-" in caplog.text


def test_a_run_that_was_tuned_on_a_folder_has_its_answers_and_the_text_that_is_given(
    trained: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outputs, chats = tmp_path / "outputs", trained.parent / "chats.jsonl"
    tuned = run("finetune", *tuning_on(chats), f"outputs={outputs}", f"base={folder}", "name=theirs")
    found = evaluate(outputs, "theirs")
    assert "no text is known that theirs has not learned from: bits per byte and probes are left out" in caplog.text
    assert found.results["answers/loss"] == pytest.approx(tuned.results["val/loss"], rel=ROUNDING) == found.objective
    assert not [name for name in found.results if name.startswith(("val/", "probe/"))]
    assert found.results["writing/prompts"] == 5 and not (found.path / "probes.jsonl").read_bytes()
    assert set(found.record["identity"]["parents"]) == {"run", "base", "data"}
    with_text = evaluate(outputs, "theirs", *same_text(trained))
    assert numbers_of(with_text) == numbers_of(evaluate(trained, "first"))  # tuned on the run that it is a copy of


def test_an_export_has_the_answers_of_its_run(trained: Path) -> None:
    """Merged, and as an adapter on its base; by the name of the export's folder, whose model is in it."""
    of_run = evaluate(trained, "first", *FEW).results
    chats = ["data=conversations", f"data.path={trained.parent / 'chats.jsonl'}", *SPLIT]
    for merge in ("true", "false"):
        export = run("export", f"outputs={trained}", "run=first", f"export.merge={merge}")
        found = evaluate(trained, export.path, *chats, *FEW)
        assert found.results["answers/loss"] == pytest.approx(of_run["answers/loss"], rel=ROUNDING)
        assert found.results["answers/conversations"] == of_run["answers/conversations"]
        assert found.record["name"] == export.path.name
        assert not [name for name in found.results if name.startswith(("probe/", "writing/"))]
        assert not (found.path / "generations.jsonl").exists()


def test_a_dry_run_of_an_evaluation_counts_what_it_would_score(trained: Path, folder: Path) -> None:
    asked = [f"outputs={trained}", "logger=local", "seed=7", "dry_run=true"]
    of_run = survey(compose("evaluate", "run=first", *asked))
    tokens = record_of(trained, "shards")["results"]["held_out"]["tokens"]
    assert (of_run.made, of_run.takes.tokens) == (["evaluate"], tokens)
    of_folder = survey(compose("evaluate", f"run={folder}", *asked, *same_text(trained)))
    assert (of_folder.made, of_folder.takes.tokens) == (["evaluate"], None)


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


# What is refused, in one line


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["run=first", "evaluation.max_new_tokens=64"],
            "max_new_tokens=64 is out of range: prompt and text share 64 tokens in first",
        ),
        (["run=first", "evaluation.tasks=[x]"], r"not installed. Install the extra: pip install -e '.\[eval\]'"),
        (["run=first", "evaluation.accelerator=gpu"], "accelerator=gpu, but torch can use no GPU here"),
        (["run={folder}"], r"^run=.*their-model is a folder, and it is not known which text its model has not seen\."),
        (
            ["run={folder}", "data=text", "data.path={text}", "data.sequence_length=4096"],
            r"^data\.sequence_length=4096 is longer than 1024, all that their-model can read",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    trained: Path, folder: Path, overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(import_module("llm.stage.evaluate"), "find_spec", lambda _name: None)  # of lm-eval
    given = [each.format(folder=folder, text=trained.parent / "text.jsonl") for each in overrides]
    with pytest.raises(ConfigError, match=message):
        run("evaluate", f"outputs={trained}", *SMALL, *given)


def test_conversations_that_changed_since_the_tuning_are_refused(trained: Path) -> None:
    path = trained.parent / "chats.jsonl"
    before = path.read_bytes()
    try:
        path.write_bytes(before[: before.index(b"\n") + 1])
        with pytest.raises(DataError, match=r"it is not known which answers that held out. Put it back as it was"):
            evaluate(trained, "first", "seed=1")
    finally:
        path.write_bytes(before)


def test_a_run_whose_shards_or_weights_are_other_ones_is_refused(outputs: Path) -> None:
    path = folder_of(outputs, "pretrain") / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x00")
    with pytest.raises(DamagedError, match=r"model.safetensors is not what run.json says"):
        evaluate(outputs, "pretrain/*")
    shards = folder_of(outputs, "shards")
    write_record(shards, load(shards).record | {"digest": "0" * 64})
    with pytest.raises(DamagedError, match=r"was trained on other shards than .* holds now"):
        evaluate(outputs, "pretrain/*")


@pytest.mark.parametrize(
    ("stage", "has_template", "asked", "expected"),
    [
        ("finetune", True, None, True),
        ("pretrain", True, None, False),  # every tokenizer of ours has a template, which this model never saw
        (None, True, None, True),
        (None, False, None, False),
        ("pretrain", True, True, True),
        (None, False, True, ConfigError),
    ],
)
def test_tasks_are_asked_by_the_chat_template_where_the_model_was_tuned_with_one(
    stage: str | None, has_template: bool, asked: bool | None, expected: Any, tmp_path: Path
) -> None:
    words = save_preset("byte_bpe", tmp_path / "words", vocab_size=300)
    if not has_template:
        (words / "chat_template.jinja").unlink()
    config: Any = SimpleNamespace(evaluation=SimpleNamespace(chat_template=asked))
    subject: Any = SimpleNamespace(run=stage and SimpleNamespace(stage=stage))
    if expected is ConfigError:
        with pytest.raises(ConfigError, match=r"chat_template=true, but the tokenizer has no chat template\. Leave it"):
            uses_chat_template(config, subject, words)
    else:
        assert uses_chat_template(config, subject, words) is expected
