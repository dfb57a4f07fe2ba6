"""The file for llama.cpp: its tensors are the model's, its tokens the tokenizer's, and what it cannot be is refused."""

import json
import os
import re
import sys
import unicodedata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from jinja2 import Environment
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from llm import model as models
from llm.config.evaluation import GgufType
from llm.config.training import Architecture, ModelConfig
from llm.errors import ConfigError, UnequalError
from llm.export.gguf import check_gguf, require_gguf, write_gguf
from llm.export.ollama import modelfile
from llm.export.weights import write_tokenizer
from llm.tokenizer.chat import read_template
from llm.tokenizer.folder import Special, load_chat, load_tokenizer, save_with_template
from llm.tokenizer.llama_cpp import LlamaCppForm, llama_cpp_form
from llm.tokenizer.training import train
from tests.korean import HARD_TEXTS, documents, preset, save_preset

POSITIONS = 48


def small(name: str) -> dict[str, Any]:
    """Settings of a small tokenizer; one of bytes keeps all of them."""
    return {"vocab_size": 700} if name.startswith(("byte", "gpt2")) else {"vocab_size": 700, "initial_alphabet": "none"}


def words_of(name: str) -> Tokenizer:
    return train(preset(name, **small(name)), iter(documents(50)))


def random_model(folder: Path, architecture: str, *, vocab_size: int, **shape: Any) -> None:
    torch.manual_seed(2)
    shape = {"num_heads": 4, "hidden_size": 64, "max_position_embeddings": 64, "num_layers": 2} | shape
    config = ModelConfig(name="tiny", architecture=Architecture[architecture], **shape)
    special = Special(bos_id=0, eos_id=0, pad_id=1, tokens=())
    model = models.build(config, vocab_size=vocab_size, special=special)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data *= 3
        elif "norm" in name or "ln_" in name:  # else every norm has the weight 1, and a lost one would not show
            parameter.data += 0.1 * torch.randn_like(parameter)
    models.save(model, folder)


def export(folder: Path, architecture: str, preset_name: str, *, kind: GgufType, **shape: Any) -> Path:
    """A folder as an export leaves it, of random weights, with model.gguf."""
    source, out = folder / "words", folder / "model"
    source.mkdir()
    out.mkdir()
    words = load_tokenizer(save_preset(preset_name, source, **small(preset_name)))
    shape = {"num_key_value_heads": None if architecture == "gpt2" else 2, "tie_word_embeddings": True} | shape
    random_model(out, architecture, vocab_size=words.get_vocab_size(), **shape)
    write_tokenizer(source, out, positions=POSITIONS)
    write_gguf(out, require_gguf(out, words, kind), kind=kind, name="시험", positions=POSITIONS)
    return out


def tensors_of(path: Path) -> dict[str, tuple[Any, np.ndarray]]:
    return {t.name: (t.tensor_type, gguf.dequantize(t.data, t.tensor_type)) for t in gguf.GGUFReader(path).tensors}


def value(path: Path, key: str) -> Any:
    return gguf.GGUFReader(path).fields[key].contents()


def halves_to_neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head: the first of one half, the first of the other, the second of one half, and so on."""
    size = weight.shape[0] // heads
    rows = [head * size + place // 2 + (size // 2) * (place % 2) for head in range(heads) for place in range(size)]
    return weight[rows]


def test_each_tensor_of_llama_has_its_name_and_its_place(tmp_path: Path) -> None:
    out = export(tmp_path, "llama", "byte_bpe", kind=GgufType.f32, tie_word_embeddings=False)
    weights, found = load_file(out / "model.safetensors"), tensors_of(out / "model.gguf")
    expected = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output.weight": weights["lm_head.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    for layer in range(2):
        ours = f"model.layers.{layer}"
        expected |= {
            f"blk.{layer}.attn_q.weight": halves_to_neighbours(weights[f"{ours}.self_attn.q_proj.weight"], 4),
            f"blk.{layer}.attn_k.weight": halves_to_neighbours(weights[f"{ours}.self_attn.k_proj.weight"], 2),
            f"blk.{layer}.attn_v.weight": weights[f"{ours}.self_attn.v_proj.weight"],
            f"blk.{layer}.attn_output.weight": weights[f"{ours}.self_attn.o_proj.weight"],
            f"blk.{layer}.attn_norm.weight": weights[f"{ours}.input_layernorm.weight"],
            f"blk.{layer}.ffn_norm.weight": weights[f"{ours}.post_attention_layernorm.weight"],
            f"blk.{layer}.ffn_gate.weight": weights[f"{ours}.mlp.gate_proj.weight"],
            f"blk.{layer}.ffn_up.weight": weights[f"{ours}.mlp.up_proj.weight"],
            f"blk.{layer}.ffn_down.weight": weights[f"{ours}.mlp.down_proj.weight"],
        }
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name][1], tensor.numpy()) for name, tensor in expected.items())
    path = out / "model.gguf"
    assert (value(path, "general.architecture"), value(path, "general.name")) == ("llama", "시험")
    assert value(path, "llama.context_length") == POSITIONS and value(path, "llama.attention.head_count_kv") == 2
    assert value(path, "llama.rope.freq_base") == 10000.0


def test_gpt2_has_its_matrices_turned_and_the_positions_that_were_trained(tmp_path: Path) -> None:
    out = export(tmp_path, "gpt2", "byte_bpe", kind=GgufType.f16)
    weights, found = load_file(out / "model.safetensors"), tensors_of(out / "model.gguf")
    ours = weights["transformer.h.1.attn.c_attn.weight"].T.half().float().numpy()
    assert np.array_equal(found["blk.1.attn_qkv.weight"][1], ours)
    assert np.array_equal(found["position_embd.weight"][1], weights["transformer.wpe.weight"][:POSITIONS].numpy())
    assert "output.weight" not in found  # tied
    merges = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert value(out / "model.gguf", "tokenizer.ggml.merges") == [" ".join(pair) for pair in merges]
    assert value(out / "model.gguf", "tokenizer.ggml.pre") == "gpt-2"
    assert found["blk.0.ffn_up.bias"][0] is gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize(
    ("kind", "hidden_size", "expected"),
    [
        (GgufType.f32, 64, gguf.GGMLQuantizationType.F32),
        (GgufType.q8_0, 64, gguf.GGMLQuantizationType.Q8_0),
        (GgufType.q8_0, 48, gguf.GGMLQuantizationType.F16),  # 48 is no multiple of its 32
    ],
)
def test_matrices_have_the_type_that_is_asked_for(
    kind: GgufType, hidden_size: int, expected: Any, tmp_path: Path
) -> None:
    out = export(tmp_path, "qwen3", "byte_bpe", kind=kind, hidden_size=hidden_size)
    weights, found = load_file(out / "model.safetensors"), tensors_of(out / "model.gguf")
    assert found["blk.0.attn_q.weight"][0] is expected
    assert found["blk.0.attn_q_norm.weight"][0] is gguf.GGMLQuantizationType.F32
    apart = float(np.abs(found["token_embd.weight"][1] - weights["model.embed_tokens.weight"].numpy()).max())
    assert (apart == 0) is (kind is GgufType.f32) and apart < 0.01


def test_a_tensor_that_changed_is_found(tmp_path: Path) -> None:
    out = export(tmp_path, "llama", "byte_bpe", kind=GgufType.q8_0)
    every, name = {key: values for key, (_, values) in tensors_of(out / "model.gguf").items()}, "blk.0.attn_v.weight"
    every[name] = load_file(out / "model.safetensors")["model.layers.0.self_attn.v_proj.weight"].numpy().copy()
    every[name][3, 5] += 0.01
    with pytest.raises(UnequalError, match=r"model.gguf: blk.0.attn_v.weight is not what was written"):
        check_gguf(out / "model.gguf", every)
    with pytest.raises(UnequalError, match=r"blk.9 is not what was written"):
        check_gguf(out / "model.gguf", {key: v for key, v in every.items() if key != name} | {"blk.9": every[name]})


def test_the_tokenizer_goes_along_with_roles_types_and_template(tmp_path: Path) -> None:
    path = export(tmp_path, "llama", "char_bpe", kind=GgufType.f16) / "model.gguf"
    vocab = json.loads((path.parent / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    tokens, types = value(path, "tokenizer.ggml.tokens"), value(path, "tokenizer.ggml.token_type")
    assert tokens == sorted(vocab, key=vocab.__getitem__) and len(tokens) == len(vocab)
    kind = {name: types[vocab[name]] for name in ("<|endoftext|>", "<|pad|>", "<unk>", "<0x41>", "가")}
    assert kind == {"<|endoftext|>": 3, "<|pad|>": 3, "<unk>": 2, "<0x41>": 6, "가": 1}
    assert value(path, "tokenizer.ggml.model") == "llama" and value(path, "tokenizer.ggml.add_space_prefix") is False
    assert value(path, "tokenizer.ggml.scores")[:3] == [0, -1, -2] and value(path, "tokenizer.ggml.add_bos_token")
    roles = [value(path, f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding", "unknown")]
    assert roles == [0, 0, 1, 2]
    template = value(path, "tokenizer.chat_template")
    assert "generation" not in template and "{#- -#}" in template and "질문: " in template


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("byte_bpe", LlamaCppForm(model="gpt2", pre="gpt-2", needs_nfc=False)),
        ("byte_bpe_gpt4", LlamaCppForm(model="gpt2", pre="dbrx", needs_nfc=False)),
        ("byte_bpe_qwen2", LlamaCppForm(model="gpt2", pre="qwen2", needs_nfc=True)),
        ("char_bpe", LlamaCppForm(model="llama", pre="default", needs_nfc=True)),
        ("unigram", "llama.cpp has no Unigram that gives the same tokens"),
        ("bert_wordpiece", "llama.cpp has no WordPiece that gives the same tokens"),
        ("blog", "llama.cpp knows no prefix, suffix or dropout of pieces"),
    ],
)
def test_which_tokenizers_llama_cpp_can_do(name: str, expected: LlamaCppForm | str) -> None:
    assert llama_cpp_form(words_of(name)) == expected


def test_what_would_be_cut_otherwise_by_llama_cpp_is_found() -> None:
    state = json.loads(words_of("char_bpe").to_str())
    model, vocab = state["model"], state["model"]["vocab"]
    without_a_byte = {token: number for token, number in vocab.items() if token != "<0x41>"}
    past_a_space = {"vocab": vocab | {"가▁": len(vocab)}, "merges": [*model["merges"], ["가", "▁"]]}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"pre_tokenizer": None}, "llama.cpp has no rule that cuts words in this way"),
        ({"normalizer": {"type": "NFKC"}}, "llama.cpp does not normalize text in this way"),
        ({"model": model | {"vocab": without_a_byte}}, "it lacks a byte"),
        ({"model": model | past_a_space}, "a token goes on past a space"),
        ({"model": model | {"merges": model["merges"][::-1]}}, "a token is made by two pairs, or not in the order"),
    ]
    for changes, reason in cases:
        assert str(llama_cpp_form(Tokenizer.from_str(json.dumps(state | changes)))).startswith(reason)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("gemma3", {}, r"export.gguf=f16: gemma3_text is not among gpt2, llama, qwen3, which are proved"),
        ("llama", {"attention_bias": True}, r"llama.cpp has attention_bias=False for llama, and this model has True"),
        (
            "gpt2",
            {"activation_function": "relu"},
            r"has activation_function=gelu_pytorch_tanh for gpt2, and this model has relu",
        ),
        ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, r"rope_type=linear"),
        ("llama", {}, r"f16: llama.cpp has no WordPiece that gives .* train with tokenizer=byte_bpe"),
    ],
)
def test_what_llama_cpp_would_compute_or_cut_otherwise_is_refused(
    architecture: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    random_model(tmp_path, architecture, vocab_size=20, extra=changes)
    with pytest.raises(ConfigError, match=message):
        require_gguf(tmp_path, words_of("bert_wordpiece"), GgufType.f16)


# Q4_K_M: where neither is installed, by a program in the place of llama.cpp's own

STAND_IN = """#!{python}
import sys, gguf
source, target, kind = sys.argv[1:]
if kind != "Q4_K_M" or {fails}:
    sys.exit("error: unknown quantization")
open(target, "wb").write(open(source, "rb").read())
"""


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
    program = folder / "llama-quantize"
    program.write_text(STAND_IN.format(python=sys.executable, fails=fails), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_q4_k_m_is_made_by_the_quantizer_of_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, monkeypatch)
    out = export(tmp_path, "llama", "byte_bpe", kind=GgufType.q4_k_m)
    assert [path.name for path in out.glob("model.*")] == ["model.gguf", "model.safetensors"]
    assert tensors_of(out / "model.gguf")["blk.0.attn_v.weight"][0] is gguf.GGMLQuantizationType.F32  # as it came
    form, how = LlamaCppForm(model="gpt2", pre="gpt-2", needs_nfc=False), {"name": "a", "positions": POSITIONS}
    put_on_path(tmp_path, monkeypatch, fails=True)
    with pytest.raises(ConfigError, match=r"llama.cpp's quantizer ended with 1: error: unknown quantization"):
        write_gguf(out, form, kind=GgufType.q4_k_m, **how)
    monkeypatch.setattr("llm.export.gguf.find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"^export.gguf=q4_k_m is made by .* Put llama-quantize of llama.cpp on the"):
        require_gguf(out, load_tokenizer(tmp_path / "words"), GgufType.q4_k_m)


# Ollama


CHAT = [
    {"role": "system", "content": "짧게 말한다."},
    {"role": "user", "content": "어디에 있나요?"},
    {"role": "assistant", "content": "도서관에 있습니다."},
    {"role": "user", "content": "언제요?"},
]


@pytest.mark.parametrize("name", ["plain", "chatml"])
def test_a_modelfile_has_the_chat_template_in_gos_syntax(name: str, tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "tuned"
    base.mkdir()
    save_preset("byte_bpe", base, vocab_size=400)
    save_with_template(base, read_template(name), target, name=name)
    chat = load_chat(target)
    said = modelfile(target, positions=256, has_chat=True)
    assert said.startswith(f'FROM ./model.gguf\nPARAMETER num_ctx 256\nPARAMETER stop "{chat.eos_token}"\n')
    found = re.search(r'TEMPLATE """(.*)"""\n$', said, re.S)
    assert found is not None
    for turns in (CHAT[:2], CHAT[1:2], CHAT):  # what llama.cpp puts before it aside
        expected = str(chat.apply_chat_template(turns, tokenize=False)).removeprefix(str(chat.bos_token))
        assert rendered(found[1], turns) == expected


LAST = r'if and \(eq \.Role ("\w+")\) \(eq \(len \(slice \$\.Messages \$i\)\) 1\)'
GO_AS_JINJA = (
    (r"range \$i, \$turn := \.Messages \}\}", "% for turn in turns %}"),
    (r'else if eq \.Role ("\w+") \}\}', r"% elif turn.role == \1 %}"),
    (r'if eq \.Role ("\w+") \}\}', r"% if turn.role == \1 %}"),
    (LAST + r" \}\}", r"% if turn.role == \1 and loop.last %}"),
    (r"end \}\}$", "% endfor %}"),
    (r"end \}\}", "% endif %}"),
    (r"\.Role \}\}", "{ turn.role }}"),
    (r"\.Content \}\}", "{ turn.content }}"),
)


def rendered(template: str, turns: list[dict[str, str]]) -> str:
    """What Go's text/template makes of it, of the few words that ours need, by way of Jinja."""
    for go, jinja in GO_AS_JINJA:
        template = re.sub(r"\{\{ " + go, "{" + jinja, template)
    return Environment(keep_trailing_newline=True).from_string(template).render(turns=turns)


def test_a_modelfile_of_a_pretrained_model_goes_on_from_a_text(tmp_path: Path) -> None:
    save_preset("byte_bpe", tmp_path, vocab_size=400)
    assert modelfile(tmp_path, positions=64, has_chat=False).splitlines() == [
        "FROM ./model.gguf", "PARAMETER num_ctx 64", 'PARAMETER stop "<|endoftext|>"', 'TEMPLATE """{{ .Prompt }}"""',
    ]  # fmt: skip


def test_a_modelfile_of_another_template_has_none(tmp_path: Path) -> None:
    save_preset("byte_bpe", tmp_path, vocab_size=400)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    assert "TEMPLATE" not in modelfile(tmp_path, positions=64, has_chat=True)


# By llama.cpp itself


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed (docs/export.md)")
def test_q4_k_m_of_llama_cpp_itself_is_read_by_it(tmp_path: Path) -> None:
    from llama_cpp import Llama  # type: ignore[import-not-found,unused-ignore]

    out = export(tmp_path, "llama", "byte_bpe", kind=GgufType.q4_k_m, hidden_size=256)
    found = tensors_of(out / "model.gguf")
    kinds = {key: gguf_type.name for key, (gguf_type, _) in found.items()}
    assert kinds["blk.0.attn_q.weight"] == "Q4_K" and kinds["blk.0.attn_norm.weight"] == "F32"
    theirs = Llama(str(out / "model.gguf"), n_ctx=POSITIONS, logits_all=True, verbose=False, n_threads=1)
    ids = Tokenizer.from_file(str(out / "tokenizer.json")).encode("어제 책을 읽었다.").ids[:POSITIONS]
    theirs.eval(ids)
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(out).eval()(torch.tensor([ids])).logits[0].numpy()
    apart = theirs.scores[: len(ids)] - logits
    assert 0 < np.sqrt(np.mean(apart**2)) < 0.25 * logits.std()


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed (docs/export.md)")
@pytest.mark.parametrize(
    ("architecture", "name", "tied", "bound"),
    [
        ("llama", "byte_bpe", True, 1e-4),
        ("gpt2", "char_bpe", True, 5e-3),  # llama.cpp looks GELU up in a table of f16
        ("qwen3", "char_bpe", False, 1e-4),
        ("llama", "byte_bpe_gpt4", False, 1e-4),
        ("gpt2", "byte_bpe_qwen2", True, 5e-3),
    ],
)
def test_llama_cpp_cuts_and_computes_as_transformers_does(
    architecture: str, name: str, tied: bool, bound: float, tmp_path: Path
) -> None:
    from llama_cpp import Llama  # type: ignore[import-not-found,unused-ignore]

    out = export(tmp_path, architecture, name, kind=GgufType.f32, tie_word_embeddings=tied)
    path = str(out / "model.gguf")
    theirs = Llama(path, n_ctx=POSITIONS, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
    words = Tokenizer.from_file(str(out / "tokenizer.json"))
    words.encode_special_tokens = True
    texts = [unicodedata.normalize("NFC", text) for text in [*HARD_TEXTS.values(), *documents(30, seed=9)]]
    for text in texts:
        assert theirs.tokenize(text.encode(), add_bos=True, special=False) == words.encode(text).ids
    ours = AutoModelForCausalLM.from_pretrained(out).eval()
    for text in texts[-5:]:
        ids = words.encode(text).ids[:POSITIONS]
        theirs.reset()
        theirs.eval(ids)
        with torch.inference_mode():
            logits = ours(torch.tensor([ids])).logits[0].numpy()
        assert np.abs(theirs.scores[: len(ids)] - logits).max() <= bound
