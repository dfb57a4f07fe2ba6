"""model=pretrained and tokenizer=pretrained: training goes on from a Hugging Face folder, a run, or the hub's cache."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llm.data.order import MicroBatch
from llm.data.rows import TokenRows
from llm.data.shards import read_manifest
from llm.errors import ConfigError, DamagedError
from llm.model import build
from llm.run.runs import Run
from llm.tokenizer.folder import Special
from tests.korean import documents
from tests.rounding import rounding
from tests.test_stages import compose, run, write_text
from tests.tuned import quick_peak  # noqa: F401  # a fixture

WORDS = 400
END = "<|끝|>"
TINY = [
    "data=text",
    "data.held_out_share=0.1",
    "data.sequence_length=32",
    "data.batch_size=4",
    "trainer.max_steps=4",
    "trainer.log_every_steps=1",
    "trainer.sample_tokens=4",
    "optimizer.warmup_steps=0",
    "logger=local",
]
SHAPE: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SMALL = ["tokenizer.initial_alphabet=none", "tokenizer.vocab_size=600", "model.num_layers=1", "model.num_heads=2"]
SMALL += ["model.hidden_size=16"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def words_of(size: int, *, seed: int = 0) -> Tokenizer:
    """A byte-level tokenizer of somebody else."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(documents(60, seed=seed), trainer)
    made.enable_truncation(16)  # as a folder may have it, which would cut documents
    return made


def write_folder(folder: Path, model: Any, *, size: int = WORDS, seed: int = 0) -> Path:
    model.save_pretrained(folder)
    roles = {"eos_token": END}
    PreTrainedTokenizerFast(tokenizer_object=words_of(size, seed=seed), **roles).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.jsonl")


def qwen3(**changes: Any) -> Any:
    torch.manual_seed(1)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE | {"head_dim": 8, "num_key_value_heads": 1} | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "their-model", qwen3())


def go_on(tmp_path: Path, text: Path, path: object, *overrides: str, tokenizer: str = "pretrained") -> Run:
    return run("pretrain", *asked(tmp_path, text, path, *overrides, tokenizer=tokenizer))


def asked(tmp_path: Path, text: Path, path: object, *overrides: str, tokenizer: str = "pretrained") -> list[str]:
    where = [f"data.path={text}", f"outputs={tmp_path / 'outputs'}", f"model.path={path}"]
    return ["model=pretrained", f"tokenizer={tokenizer}", *TINY, *where, *overrides]


def refusal(tmp_path: Path, text: Path, path: object, *overrides: str, tokenizer: str = "pretrained") -> str:
    """The one line; nothing has been made."""
    with pytest.raises((ConfigError, DamagedError)) as caught:
        go_on(tmp_path, text, path, *overrides, tokenizer=tokenizer)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "outputs" / "shards").exists()
    return str(caught.value)


@pytest.fixture(scope="module")
def made(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Run]:
    """(the folder that outputs lie in, a folder of somebody else, a run that went on from it)."""
    place = tmp_path_factory.mktemp("made")
    theirs = write_folder(place / "their-model", qwen3())
    return place, theirs, go_on(place, text, theirs, "trainer.precision=fp32")


def test_training_goes_on_from_the_weights_of_a_folder(made: tuple[Path, Path, Run]) -> None:
    _, folder, run = made
    theirs, ours = (load_file(path / "model.safetensors") for path in (folder, run.path / "model"))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    moved = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert 0 < moved < 0.02  # four steps of 1e-3 each
    recorded = run.config["model"]
    assert (recorded["architecture"], recorded["num_key_value_heads"], recorded["hidden_size"]) == ("qwen3", 1, 16)
    assert run.path.name.startswith("their-model-pretrained-text-")
    saved = json.loads((run.path / "model" / "config.json").read_text(encoding="utf-8"))
    assert (saved["bos_token_id"], saved["eos_token_id"], saved["pad_token_id"]) == (0, 0, 0)


def test_the_loss_before_the_first_step_is_that_of_the_folder(made: tuple[Path, Path, Run]) -> None:
    """On every held-out row, by the model as transformers loads it; fp32, for it is compared to a float's last bits."""
    _, folder, run = made
    manifest = read_manifest(run.parent("shards").path / "shards")
    rows = TokenRows({"": (run.parent("shards").path / "shards", manifest)}, "held_out", sequence_length=32)
    model = AutoModelForCausalLM.from_pretrained(folder)
    nats, labels = 0.0, 0
    for number in range(len(rows)):
        batch = rows.__getitems__(MicroBatch(rows=[number], num_labels=0, step=0))
        with torch.no_grad():
            logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0], batch["labels"][0], reduction="sum", ignore_index=-100)
        nats, labels = nats + float(loss), labels + int((batch["labels"] != -100).sum())
    assert run.results["val/loss_before"] == pytest.approx(nats / labels, rel=rounding(WORDS))


def test_a_read_tokenizer_cuts_no_document(made: tuple[Path, Path, Run]) -> None:
    """Though its tokenizer.json asks for truncation to 16 tokens."""
    _, folder, run = made
    assert run.parent("tokenizer").results["exact_round_trip"] == 1.0
    whole, kept = (
        json.loads((path / "tokenizer.json").read_text(encoding="utf-8")) for path in (folder, run.path / "model")
    )
    assert whole["truncation"] is not None and kept["truncation"] is None
    assert {key for key in whole if whole[key] != kept[key]} == {"truncation"}


def test_the_same_weights_elsewhere_and_in_the_hubs_cache_are_the_same_run_and_others_another(
    made: tuple[Path, Path, Run], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, folder, run = made
    repository = tmp_path / "hub" / "models--someone--small"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(repository.parent))
    shutil.copytree(folder, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    moved = shutil.copytree(folder, tmp_path / "moved")
    for same in (moved, "someone/small"):
        assert go_on(place, text, same, "trainer.precision=fp32").path == run.path
    line = refusal(tmp_path, text, "someone/smaller")
    assert line.startswith("model.path=someone/smaller: there is no such folder, and the hub's model of that id cannot")
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert go_on(place, text, moved, "trainer.precision=fp32").key != run.key


def test_another_tokenizer_is_refused_before_a_shard_is_written(folder: Path, tmp_path: Path, text: Path) -> None:
    line = refusal(tmp_path, text, folder, *SMALL[:2], tokenizer="char_bpe")
    assert line.startswith("tokenizer: it is another than the model's own tokenizer.json, in ")
    assert "Choose tokenizer=pretrained, which takes that, or set model.resize_vocabulary=true" in line


def test_a_resized_vocabulary_keeps_the_embeddings_of_known_tokens(
    folder: Path, tmp_path: Path, text: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_folder(tmp_path / "other", qwen3(), size=450, seed=3)
    config = compose(
        "pretrain", *asked(tmp_path, text, folder, "model.resize_vocabulary=true", "model.new_embeddings=mean")
    ).model
    torch.manual_seed(0)
    special = Special(bos_id=0, eos_id=0, pad_id=0, tokens=())
    model = build(config, vocab_size=450, special=special, tokenizer_folder=other)
    old = load_file(folder / "model.safetensors")
    known, tokens = (Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab() for path in (folder, other))
    shared, unknown = sorted(known.keys() & tokens.keys()), sorted(tokens.keys() - known.keys())
    assert 257 <= len(shared) < WORDS
    for layer, name in ((model.get_input_embeddings(), "model.embed_tokens"), (model.lm_head, "lm_head")):
        weight = layer.weight.detach()
        assert weight.shape == (450, 16)
        assert torch.equal(weight[[tokens[t] for t in shared]], old[f"{name}.weight"][[known[t] for t in shared]])
        mean = old[f"{name}.weight"][[known[t] for t in shared]].mean(0)
        torch.testing.assert_close(weight[[tokens[t] for t in unknown]], mean.expand(len(unknown), -1))
    assert f"450 tokens in place of 400; {len(shared)} keep the embedding of their text" in caplog.text
    made = go_on(tmp_path, text, folder, "model.resize_vocabulary=true", *SMALL[:2], tokenizer="char_bpe")
    assert (
        AutoModelForCausalLM.from_pretrained(made.path / "model").config.vocab_size
        == (made.parent("shards").results["vocab_size"])
    )


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (without_config, "has no config.json. Give a folder of a whole model."),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: edit(f, quantization_config={"bits": 4}), "its weights are quantised, and whole ones are needed"),
        (lambda f: edit(f, num_attention_heads="many"), "config.json is not what qwen3 takes"),
    ],
)
def test_a_folder_that_cannot_be_gone_on_from_is_one_line(
    change: Any, line: str, folder: Path, tmp_path: Path, text: Path
) -> None:
    change(folder)
    assert line in refusal(tmp_path, text, folder, f"tokenizer.path={folder}")


def test_a_model_that_is_not_causal_is_refused(tmp_path: Path, text: Path) -> None:
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    model = BertForMaskedLM(BertConfig(**{key: SHAPE[key] for key in keys}))
    bert = write_folder(tmp_path / "bert", model)
    assert "is of BertForMaskedLM, not a causal language model" in refusal(tmp_path, text, bert)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.num_layers=7"], "model.num_layers=7, but the model in "),
        (["model.architecture=gpt2"], "model.architecture=gpt2, but the model in "),
        (["data.sequence_length=65"], "data.sequence_length=65 is longer than model.max_position_embeddings=64."),
        (["tokenizer.eos_token='끝'"], "its eos_token 끝 is none of its special tokens. Set tokenizer.eos_token."),
    ],
)
def test_settings_that_the_folder_contradicts_are_refused(
    overrides: list[str], line: str, folder: Path, tmp_path: Path, text: Path
) -> None:
    assert line in refusal(tmp_path, text, folder, *overrides)


def test_a_tokenizer_without_an_end_asks_for_one(folder: Path, tmp_path: Path, text: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    edit(folder, eos_token_id=None, bos_token_id=None)
    assert "it names no eos_token, which ends a text. Set tokenizer.eos_token" in refusal(tmp_path, text, folder)
    assert go_on(tmp_path, text, folder, f"tokenizer.eos_token='{END}'").is_done
