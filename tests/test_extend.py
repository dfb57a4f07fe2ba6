"""tokenizer=extend: a base's tokenizer with new tokens that its own BPE learns, and the model's rows for them."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from llm.config.training import OptimizerConfig, Schedule, Trainable
from llm.dry_run.survey import survey
from llm.errors import ConfigError, DataError
from llm.model import flops_per_token
from llm.model.pretrained import take_rows, train_only
from llm.optimizer import build
from llm.run.runs import Run
from llm.tokenizer.extend import Extension, extend
from tests.korean import documents
from tests.test_stages import compose, run
from tests.tuned import quick_peak, write_lines

assert quick_peak  # a fixture
ENGLISH = [f"Fox number {n} jumps over lazy dogs, while {n * 7} foxes sleep in house {n % 13}." for n in range(300)]
KOREAN = documents(300)
LORA = ["model.trainable=lora", "lora.base_precision=bf16"]


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(ENGLISH, trainer(400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet))
    return made


def trainer(size: int, **others) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(vocab_size=size, show_progress=False, **others)


def like_llama_2() -> Tokenizer:
    """Byte fallback, spaces as ▁, and words that are not parted before the merges."""
    special = ["<unk>", "<s>", "</s>"]
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    made.train_from_iterator(ENGLISH, trainer(500, special_tokens=special + pieces))
    state = json.loads(made.to_str())
    state["pre_tokenizer"] = None
    state["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def like_llama_3() -> Tokenizer:
    """Special tokens behind the vocabulary, and whole words that need no merges."""
    state = json.loads(byte_level().to_str())
    vocab = [token for token in sorted(state["model"]["vocab"], key=state["model"]["vocab"].get) if len(token) < 13]
    state["model"] |= {"ignore_merges": True, "vocab": {token: number for number, token in enumerate(vocab)}}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    names = enumerate(["<|begin_of_text|>", "<|eot_id|>"], len(vocab))
    state["added_tokens"] = [{"id": number, "content": name, **flags} for number, name in names]
    return Tokenizer.from_str(json.dumps(state))


BASES = {"byte level": byte_level, "llama 2": like_llama_2, "llama 3": like_llama_3}


@pytest.fixture(scope="module", params=BASES)
def pair(request) -> tuple[Tokenizer, Extension]:
    base = BASES[request.param]()
    return base, extend(base, lambda: iter(KOREAN), new_tokens=250)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_the_bases_tokens_keep_their_ids_and_the_new_ones_follow(pair):
    base, made = pair
    assert base.get_vocab().items() <= made.tokenizer.get_vocab().items()
    numbers = [made.tokenizer.token_to_id(token) for token in made.tokens]
    assert numbers == list(range(base.get_vocab_size(), base.get_vocab_size() + 250))
    assert base.get_added_tokens_decoder().keys() == made.tokenizer.get_added_tokens_decoder().keys()


def test_text_without_a_new_token_is_cut_as_before(pair):
    base, made = pair
    assert [ids(made.tokenizer, text) for text in ENGLISH] == [ids(base, text) for text in ENGLISH]


def test_every_new_token_is_what_its_own_text_becomes(pair):
    _, made = pair
    for token in made.tokens:
        assert [piece.value for piece in made.tokenizer.model.tokenize(token)] == [token]


def test_korean_takes_fewer_tokens_and_comes_back(pair):
    base, made = pair
    assert sum(len(ids(made.tokenizer, text)) for text in KOREAN) < sum(len(ids(base, text)) for text in KOREAN) / 3
    assert [made.tokenizer.decode(ids(made.tokenizer, text)) for text in KOREAN] == KOREAN


def test_characters_that_a_base_spells_by_bytes_come_first():
    base = like_llama_2()
    made = extend(base, lambda: iter(KOREAN), new_tokens=250)
    characters = made.tokens[: made.characters]
    assert all(len(token) == 1 for token in characters) and {"다", "에"} <= {*characters}
    assert all(len(token) > 1 and "▁" not in token[1:] for token in made.tokens[made.characters :])


def test_fewer_new_tokens_are_the_first_of_more(pair):
    base, made = pair
    assert extend(base, lambda: iter(KOREAN), new_tokens=200).tokens == made.tokens[:200]


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.train_from_iterator(KOREAN, trainers.UnigramTrainer(vocab_size=200, show_progress=False, unk_token="<unk>"))
    return made


@pytest.mark.parametrize(
    ("base", "texts", "error", "said"),
    [
        (unigram, KOREAN, ConfigError, "it is Unigram, and new tokens are learned by BPE"),
        (byte_level, ["a b c"], DataError, "the text gives no new token"),
        (like_llama_2, KOREAN, ConfigError, r"tokenizer.new_tokens=40 leaves no room .* characters .* Set it to \d+"),
    ],
)
def test_what_cannot_be_extended_is_said(base, texts, error, said):
    with pytest.raises(error, match=said):
        extend(base(), lambda: iter(texts), new_tokens=40)


def test_a_row_is_the_weighted_sum_of_its_pieces():
    made = AutoModelForCausalLM.from_config(small_config())
    table, head = made.get_input_embeddings().weight.clone(), made.get_output_embeddings().weight.clone()
    take_rows(made, 12, {n: n for n in range(10)}, pieces={10: {2: 0.25, 5: 0.75}})
    for now, before in ((made.get_input_embeddings().weight, table), (made.get_output_embeddings().weight, head)):
        assert torch.equal(now[:10], before)
        assert torch.allclose(now[10], 0.25 * before[2] + 0.75 * before[5])
        assert torch.allclose(now[11], before.mean(dim=0))


def small_config(*, tie: bool = False):
    from transformers import LlamaConfig

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaConfig(vocab_size=10, tie_word_embeddings=tie, **sizes)


# End to end


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Run, list[str]]]:
    """(the model that is the base, a run that went on from it in Korean, the settings of that)."""
    folder = tmp_path_factory.mktemp("extend")
    english = write_lines(folder / "en.jsonl", ({"text": text} for text in ENGLISH))
    korean = write_lines(folder / "ko.jsonl", ({"text": text} for text in KOREAN))
    words = ["data.held_out_share=0.1", "data.sequence_length=64", "data.batch_size=4", "logger=local"]
    words += ["trainer.max_steps=2", "trainer.sample_tokens=2", f"outputs={folder / 'outputs'}", "data=text"]
    shape = ["model.num_layers=1", "model.num_heads=2", "model.hidden_size=16"]
    base = run("pretrain", *words, *shape, f"data.path={english}", "tokenizer=byte_bpe", "tokenizer.vocab_size=300")
    path = f"model.path={base.path / 'model'}"
    again = [*words, f"data.path={korean}", "model=pretrained", path, "tokenizer=extend"]
    yield base.path / "model", run("pretrain", *again, "tokenizer.new_tokens=120"), again


def test_a_run_goes_on_from_the_base_with_the_new_tokens(adapted):
    _, made, _ = adapted
    tokenizer = made.parent("tokenizer")
    assert tokenizer.results["vocab_size"] == 300 + 120 and tokenizer.record["notes"]["new_tokens"] == 120
    assert made.config["model"]["resize_vocabulary"] and made.config["model"]["new_embeddings"] == "pieces"
    assert AutoModelForCausalLM.from_pretrained(made.path / "model").get_input_embeddings().weight.shape[0] == 420
    assert made.results["val/bits_per_byte_before"] < 8


def test_another_rule_is_another_run(adapted):
    _, made, again = adapted
    assert run("pretrain", *again, "tokenizer.new_tokens=120", "model.new_embeddings=mean").key != made.key


def test_a_smaller_one_is_cut_from_the_larger(adapted):
    _, _, again = adapted
    words = [word for word in again if word.startswith(("data", "outputs", "logger", "tokenizer"))]
    words = [word for word in words if not word.startswith(("data.sequence", "data.batch"))]
    path = next(word for word in again if word.startswith("model.path")).replace("model.", "tokenizer.")
    cut = run("tokenizer", *words, path, "tokenizer.new_tokens=60", "tokenizer.ladder=120")
    whole = run("tokenizer", *words, path, "tokenizer.new_tokens=60", "reuse=never", "name=whole")
    assert "cut_from" in cut.record["notes"] and cut.digest == whole.digest


# What is trained of it


@pytest.fixture(scope="module")
def phases(adapted) -> dict[str, Run]:
    """A run of each part of the model, each going on from the one before, by its name."""
    base, _, again = adapted
    words = [word for word in again if not word.startswith("model.path")] + ["tokenizer.new_tokens=120"]
    words += [f"tokenizer.path={base}", "optimizer.warmup_steps=0", "optimizer.learning_rate=1e-2"]
    made, before = {}, str(base)
    for part in ("new_rows", "lora", "embeddings", "lora_embeddings"):
        rank = ["lora.rank=2"] if "lora" in part else []
        made[part] = run("pretrain", *words, *rank, f"model.path={before}", f"model.trainable={part}", f"name={part}")
        before = part
    return made


def weights(run_: Run) -> dict[str, torch.Tensor]:
    return load_file(run_.path / "model" / "model.safetensors")


ENDS = {"transformer.wte.weight"}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in after if not torch.equal(before[name], after[name])}


def test_of_new_rows_nothing_else_is_trained(adapted, phases):
    base, _, _ = adapted
    before, after = load_file(base / "model.safetensors"), weights(phases["new_rows"])
    (name,) = ENDS
    assert all(torch.equal(after[each], before[each]) for each in before if each != name)
    assert torch.equal(after[name][:300], before[name])
    # each is not the mean of its pieces any more, with which it began
    tokenizer, source = (
        Tokenizer.from_file(str(f / "tokenizer.json")) for f in (phases["new_rows"].path / "model", base)
    )
    for row in range(300, 420):
        pieces = [piece.id for piece in source.model.tokenize(tokenizer.id_to_token(row))]
        assert not torch.allclose(after[name][row], before[name][pieces].mean(dim=0), atol=1e-4)
    assert phases["new_rows"].results["trainable_parameters"] == 120 * 16


def test_adapters_are_merged_and_the_new_rows_go_on_beside_them(phases):
    before, after = weights(phases["new_rows"]), weights(phases["lora"])
    (name,) = ENDS
    linear = {each for each in before if each.endswith(("attn.weight", "proj.weight", "fc.weight"))}
    assert changed(before, after) == ENDS | linear
    assert torch.equal(after[name][:300], before[name][:300])  # new are those that tokenizer.path lacks
    assert not any(torch.equal(after[name][row], before[name][row]) for row in range(300, 420))
    for each in linear:  # two matrices of rank 2
        assert torch.linalg.matrix_rank(after[each] - before[each], atol=1e-5) <= 2


def test_of_the_embeddings_all_rows_are_trained_with_adapters_or_without(phases):
    before, after = weights(phases["lora"]), weights(phases["embeddings"])
    assert changed(before, after) == ENDS
    assert phases["embeddings"].results["trainable_parameters"] == 420 * 16
    both = changed(after, weights(phases["lora_embeddings"]))
    assert both > ENDS and not any("ln" in name or "bias" in name for name in both)


def test_a_phase_begins_where_the_one_before_ended(phases):
    runs = list(phases.values())
    for first, then in pairwise(runs):
        measured = first.results["val/bits_per_byte"], then.results["val/bits_per_byte_before"]
        assert measured[0] == pytest.approx(measured[1], rel=1e-3)


@pytest.mark.parametrize("tie", [True, False])
def test_the_frozen_head_takes_its_flops_where_new_rows_are_trained(tie):
    base = AutoModelForCausalLM.from_config(small_config(tie=tie))
    multiplied = sum(p.numel() for name, p in base.named_parameters() if tie or "embed" not in name)
    model = train_only(base, Trainable.new_rows, None, new_token_ids=[8, 9])
    rows = 2 * 8 * (1 if tie else 2)  # of the embeddings, and of an untied head
    assert flops_per_token(model, model.config, sequence_length=16) == 4 * multiplied + 6 * rows + 12 * 8 * 16


def test_embeddings_have_their_own_learning_rate():
    """One step of AdamW without decay moves a weight by the learning rate, whatever its gradient."""
    model = AutoModelForCausalLM.from_config(small_config())
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    config = OptimizerConfig(
        learning_rate=1e-3, embedding_learning_rate=1e-2, weight_decay=0.0, warmup_steps=0, schedule=Schedule.constant
    )
    optimizer, _ = build(model, config, max_steps=1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 1e-2 if name in ("model.embed_tokens.weight", "lm_head.weight") else 1e-3
        assert torch.allclose(before[name] - parameter, torch.tensor(rate), atol=1e-6), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.trainable=new_rows", "tokenizer=pretrained"], "the tokenizer is the model's own"),
        (["lora.rank=4"], "lora is for adapters, and none are trained"),
        (
            ["model.trainable=lora", "lora.method=full"],
            "lora.method=full is for stage=finetune. Set model.trainable=all",
        ),
        (["model.trainable=lora", "lora.method=qlora"], "lora.method=qlora is for stage=finetune"),
        (["model.trainable=embeddings", "optimizer=muon"], "optimizer.algorithm=muon is for whole models"),
        (["model.trainable=lora", "model.pad_vocab_to_multiple_of=8"], "pad_vocab_to_multiple_of is for whole models"),
        (["model.trainable=lora_embeddings", "lora.base_precision=bf16"], "trains some of them"),
        (
            ["model.trainable=lora", "tokenizer=pretrained", "optimizer.embedding_learning_rate=1e-3"],
            "embedding_learning_rate=0.001 is of no use",
        ),
    ],
)
def test_what_no_part_can_do_is_said_before_any_work(words, said):
    with pytest.raises(ConfigError, match=said):
        compose("pretrain", "data=text", "data.path=x", "model=pretrained", "model.path=x", "tokenizer=extend", *words)


def test_a_tokenizer_without_new_tokens_is_refused_before_shards(adapted, phases, tmp_path):
    _, _, again = adapted
    words = [word for word in again if not word.startswith(("model.path", "outputs"))]
    with pytest.raises(ConfigError, match=r"model.trainable=new_rows: the tokenizer has no token that .* lacks"):
        model = phases["new_rows"].path / "model"
        same = [f"model.path={model}", f"tokenizer.path={model}", "tokenizer=pretrained", f"outputs={tmp_path}"]
        run("pretrain", *words, *same, "model.resize_vocabulary=true", "model.trainable=new_rows")
    assert not (tmp_path / "shards").exists()


def test_the_same_phase_is_the_same_run_whatever_the_default_is_called(adapted):
    _, made, again = adapted
    assert run("pretrain", *again, "tokenizer.new_tokens=120", "model.trainable=all").path == made.path


def test_a_dry_run_says_what_a_phase_trains_and_leaves(adapted, phases):
    base, _, again = adapted
    words = [word for word in again if not word.startswith("model.path")] + ["tokenizer.new_tokens=120"]
    told = survey(compose("pretrain", *words, f"tokenizer.path={base}", *LORA, "lora.rank=3", "model.path=new_rows"))
    adapters = 3 * ((16 + 48) + (16 + 16) + (16 + 64) + (64 + 16))  # of GPT-2's four matrices
    assert told.takes.trainable == adapters + 120 * 16
    assert {name for name, _ in told.disk} == {"checkpoints", "model"}
    assert told.takes.memory.optimizer == pytest.approx(2 * 4 * told.takes.trainable, rel=0.01)  # in fp32
