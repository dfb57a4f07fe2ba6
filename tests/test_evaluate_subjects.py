"""stage=evaluate of what no run made, on text that `data` gives, and of the parts of a mixture."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llm.data.corpus import is_held_out
from llm.dry_run.survey import survey
from llm.errors import ConfigError, DamagedError
from llm.run.metrics import read_metrics
from llm.run.runs import Run
from llm.stage.evaluate import uses_chat_template
from llm.verify import with_parents
from tests.korean import save_preset
from tests.rounding import rounding
from tests.test_evaluate import SMALL, lines_of, results_of, texts
from tests.test_pretrained import END, SHAPE, write_folder
from tests.test_stages import _quick_peak, compose, run
from tests.tuned import STEPS, folder_of, train_first, tuning_on, write_lines

__all__ = ["_quick_peak"]  # a fixture that every test here takes too

ROUNDING = rounding(330)  # the vocabulary
SAME_TEXT = ["data=text", "data.held_out_share=0.2", "data.sequence_length=64"]
MIXTURE = "data.parts={first: {use: text, path: %s}, second: {use: text, path: %s}}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_first(tmp_path_factory.mktemp("trained"), texts(), words=["tokenizer.initial_alphabet=none"])


@pytest.fixture(scope="module")
def of_run(trained: Path) -> dict[str, Any]:
    """The results of the pretraining, on what it held out itself."""
    return results_of(run("evaluate", f"outputs={trained}", f"run={folder_of(trained, 'pretrain')}", *SMALL))


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """Its model as anybody's: no run stands behind it."""
    target = shutil.copytree(folder_of(trained, "pretrain") / "model", tmp_path / "their-model")
    (target / "tokenizer.sha256").unlink()
    return target


def evaluate(trained: Path, subject: object, *overrides: str) -> Run:
    return run("evaluate", f"outputs={trained}", f"run={subject}", *SMALL, *overrides)


def text_of(trained: Path) -> str:
    return f"data.path={trained.parent / 'text.jsonl'}"


def chats_of(trained: Path) -> list[str]:
    chats = trained.parent / "chats.jsonl"
    return ["data=conversations", f"data.path={chats}", "data.held_out_share=0.2", "data.sequence_length=64"]


def without_name(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key != "run"}


def test_a_folder_has_the_numbers_of_the_run_that_it_is_a_copy_of(
    trained: Path, folder: Path, of_run: dict[str, Any]
) -> None:
    """By its tokenizer, on the held-out side of the text: loss, probes, the very items, and what it writes."""
    found = evaluate(trained, folder, *SAME_TEXT, text_of(trained), f"evaluation.max_new_tokens={8}")
    results = results_of(found)
    assert without_name(results) == without_name(of_run)
    assert results["run"] | {"digest": ""} == {"folder": str(folder), "name": "their-model", "digest": ""}
    assert found.path.name.startswith("their-model-") and found.objective == results["val/bits_per_byte"]
    assert [each.stage for each in with_parents([found])] == ["documents", "evaluate"]
    assert not list(found.path.glob(".tmp-*"))


def test_bits_per_byte_of_a_folder_are_the_nats_of_each_document_alone(trained: Path, tmp_path: Path) -> None:
    """Of another architecture and another tokenizer, without a bos and with truncation, which must cut nothing."""
    torch.manual_seed(2)
    shape = SHAPE | {"max_position_embeddings": 32768, "head_dim": 8}
    folder = write_folder(tmp_path / "llama", LlamaForCausalLM(LlamaConfig(**shape)))
    texts_here = [text for text in texts() if is_held_out(text, 0.2)]
    found = results_of(
        evaluate(trained, folder, "data=text", "data.held_out_share=0.2", "data.sequence_length=16384",
                 text_of(trained), "evaluation.num_items=0", "evaluation.num_prompts=0")
    )  # fmt: skip
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.no_truncation()
    model, end, nats, labels = AutoModelForCausalLM.from_pretrained(folder), words.token_to_id(END), 0.0, 0
    for text in texts_here:
        ids = torch.tensor([[end, *words.encode(text).ids, end]])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double()
        nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        labels += ids.shape[1] - 1
    raw_bytes = sum(len(text.encode()) for text in texts_here)
    assert (found["val/raw_bytes"], found["val/lost_bytes"]) == (raw_bytes, 0)
    assert found["val/bits_per_byte"] == pytest.approx(nats / math.log(2) / raw_bytes, rel=ROUNDING)
    assert found["val/loss"] == pytest.approx(nats / labels, rel=ROUNDING)


def test_a_run_is_measured_on_other_text(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = write_lines(tmp_path / "other.jsonl", [{"text": f"{n}째 줄에는 다른 글이 있다. " * 3} for n in range(80)])
    found = evaluate(trained, folder_of(trained, "pretrain"), *SAME_TEXT, f"data.path={other}")
    held_out = [line for line in (f"{n}째 줄에는 다른 글이 있다. " * 3 for n in range(80)) if is_held_out(line, 0.2)]
    assert results_of(found)["val/raw_bytes"] == sum(len(text.encode()) for text in held_out)
    assert "data.held_out_share" not in caplog.text
    evaluate(trained, folder_of(trained, "pretrain"), *SAME_TEXT, f"data.path={other}", "data.held_out_share=0.3")
    assert "data.held_out_share=0.3 is more than the 0.2 that first-" in caplog.text


def test_records_that_cannot_be_read_are_counted(trained: Path, folder: Path, tmp_path: Path) -> None:
    mixed = write_lines(tmp_path / "mixed.jsonl", [{"text": text} for text in texts()[:100]] + [{"body": "글"}] * 3)
    found = evaluate(trained, folder, *SAME_TEXT, f"data.path={mixed}", "data.bad_records=drop")
    read = found.parent("documents")
    assert list(read.record["notes"]["dropped_records"].values()) == [3]
    assert len((read.path / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()) == 3


# Tuned on what no run made


def test_a_run_that_was_tuned_on_a_folder_has_its_answers_and_the_text_that_is_given(
    trained: Path, folder: Path, of_run: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outputs, chats = tmp_path / "outputs", trained.parent / "chats.jsonl"
    tuned = run("finetune", *tuning_on(chats), f"outputs={outputs}", f"base={folder}", "name=theirs")
    found = results_of(made := evaluate(outputs, "theirs"))
    assert "no text is known that theirs has not learned from: bits per byte and probes are left out" in caplog.text
    assert found["answers/loss"] == pytest.approx(tuned.results["val/loss"], rel=ROUNDING) == made.objective
    assert not [name for name in found if name.startswith(("val/", "probe/"))] and found["writing/prompts"] == 5
    assert set(made.record["identity"]["parents"]) == {"run", "base", "data"}
    with_text = results_of(evaluate(outputs, "theirs", *SAME_TEXT, text_of(trained)))
    assert with_text["answers/loss"] == found["answers/loss"] and with_text["items_sha256"] == of_run["items_sha256"]
    same = results_of(evaluate(trained, "first"))  # tuned on the run that the folder is a copy of
    assert without_name(with_text) == without_name(same)


def test_an_export_has_the_answers_of_its_run(trained: Path) -> None:
    """Merged, and as an adapter on its base; by the name of the export's folder, whose model is in it."""
    of_run = results_of(evaluate(trained, "first"))
    for merge in ("true", "false"):
        export = run("export", f"outputs={trained}", "run=first", f"export.merge={merge}")
        found = evaluate(trained, export.path, *chats_of(trained))
        assert results_of(found)["answers/loss"] == pytest.approx(of_run["answers/loss"], rel=ROUNDING)
        assert results_of(found)["answers/conversations"] == of_run["answers/conversations"]
        assert found.record["name"] == export.path.name


def test_a_model_of_the_hub_is_measured_as_its_folder(
    trained: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--small"
    shutil.copytree(folder, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    asked = [*SAME_TEXT, text_of(trained), "name=either"]
    assert evaluate(trained, "someone/small", *asked).path == evaluate(trained, folder, *asked).path
    with pytest.raises(ConfigError, match=r"^run=someone/other: there is no such folder, and the hub's model of that"):
        evaluate(trained, "someone/other", *SAME_TEXT, text_of(trained))


# By source


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(outputs with a pretraining on two parts, the setting that names them)."""
    folder = tmp_path_factory.mktemp("mixed")
    halves = {"first": texts()[:150], "second": [f"{text} 그리고 또 {n}번." for n, text in enumerate(texts()[150:])]}
    paths = [write_lines(folder / f"{name}.jsonl", [{"text": t} for t in part]) for name, part in halves.items()]
    parts = MIXTURE % tuple(paths)
    shape = ["model.num_layers=1", "model.num_heads=2", "model.hidden_size=16", "data.batch_size=4", *STEPS]
    words = ["tokenizer.vocab_size=330", "tokenizer.initial_alphabet=none"]
    split = ["data=mixture", parts, "data.held_out_share=0.2", "data.sequence_length=64"]
    run("pretrain", *split, *words, *shape, f"outputs={folder / 'outputs'}", "name=mixed")
    return folder / "outputs", parts


def test_each_part_of_a_mixture_has_the_numbers_that_training_measured(mixed: tuple[Path, str]) -> None:
    outputs, parts = mixed
    found = evaluate(outputs, "mixed")
    results, trained_on = results_of(found), read_metrics(folder_of(outputs, "pretrain") / "metrics.jsonl")
    last = [record for record in trained_on if "val/loss" in record][-1]
    names = [f"val/{measure}{part}" for measure in ("loss", "bits_per_byte") for part in ("", "/first", "/second")]
    assert {name: found.results[name] for name in names} == pytest.approx({name: last[name] for name in names})
    prompts = [line["prompt"] for line in lines_of(found.path / "generations.jsonl")]
    assert len(prompts) == 5 and all(any(prompt in text for text in texts()) for prompt in prompts)
    share = ["data.held_out_share=0.2", "data.sequence_length=64"]
    folder = evaluate(outputs, folder_of(outputs, "pretrain") / "model", "data=mixture", parts, *share)
    assert {name: results_of(folder)[name] for name in names} == {name: results[name] for name in names}


# What is refused, in one line


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"^run=.*their-model is a folder, and it is not known which text its model has not seen\. Give some"),
        (
            ["data=korean_law", "data.sequence_length=4096"],
            r"^data\.sequence_length=4096 is longer than 1024, all that",
        ),
    ],
)
def test_what_cannot_be_asked_of_a_folder_is_one_line(
    trained: Path, folder: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(trained, folder, *overrides)


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_a_folder_that_cannot_be_scored_is_refused(trained: Path, folder: Path) -> None:
    asked = [*SAME_TEXT, text_of(trained)]
    edit(folder, "config.json", quantization_config={"load_in_4bit": True})
    with pytest.raises(ConfigError, match=r"its weights are quantised"):
        evaluate(trained, folder, *asked)
    edit(folder, "config.json", quantization_config=None)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"^run: .*model does not hold a model's weights: model\.safetensors is m"):
        evaluate(trained, folder, *asked)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"their-model has no tokenizer\.json\. Put the model's tokenizer"):
        evaluate(trained, folder, *asked)


def test_a_dry_run_of_an_evaluation_counts_what_it_would_score(trained: Path, folder: Path) -> None:
    shards = json.loads((folder_of(trained, "shards") / "run.json").read_text(encoding="utf-8"))["results"]
    of_run = survey(compose("evaluate", f"outputs={trained}", "run=first", "seed=7", "logger=local", "dry_run=true"))
    assert (of_run.made, of_run.takes.tokens) == (["evaluate"], shards["held_out"]["tokens"])
    asked = ["dry_run=true", "logger=local", "seed=7", *SAME_TEXT, text_of(trained)]
    of_folder = survey(compose("evaluate", f"outputs={trained}", f"run={folder}", *asked))
    assert (of_folder.made, of_folder.takes.tokens) == (["evaluate"], None)


@pytest.mark.parametrize(
    ("stage", "has_template", "asked", "expected"),
    [
        ("finetune", True, None, True),
        ("pretrain", True, None, False),  # every tokenizer of ours has a template, which this model never saw
        (None, False, None, False),
        ("pretrain", True, True, True),
        (None, False, True, ConfigError),
    ],
)
def test_tasks_are_asked_by_the_chat_template_where_the_model_was_tuned_with_one(
    stage: str | None, has_template: bool, asked: bool | None, expected: Any, tmp_path: Path
) -> None:
    words = save_preset("char_bpe", tmp_path / "words", vocab_size=500, initial_alphabet="none")
    if not has_template:
        (words / "chat_template.jinja").unlink()
    config: Any = SimpleNamespace(evaluation=SimpleNamespace(chat_template=asked))
    subject: Any = SimpleNamespace(run=stage and SimpleNamespace(stage=stage))
    if expected is ConfigError:
        with pytest.raises(ConfigError, match=r"chat_template=true, but the tokenizer has no chat template\. Leave it"):
            uses_chat_template(config, subject, words)
    else:
        assert uses_chat_template(config, subject, words) is expected
