"""A model's folder in Hugging Face format -> one file in GGUF for llama.cpp, read back and compared with the folder.

The names and the layout are llama.cpp's own (convert_hf_to_gguf.py is its converter, which comes with its sources and
in no package). What its code for an architecture does not do is refused.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from llm.config.evaluation import GgufType
from llm.errors import ConfigError, UnequalError
from llm.model import open_config
from llm.run.models import TOKENIZER, read_json
from llm.tokenizer.llama_cpp import LlamaCppForm, llama_cpp_form

# What llama.cpp does for each architecture, and has no setting for.
_FIXED: dict[str, dict[str, Any]] = {
    "gpt2": {
        "activation_function": "gelu_pytorch_tanh",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    "llama": (_llama := {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}),
    "qwen3": {**_llama, "use_sliding_window": False},
}
_TRANSPOSED = re.compile(r"c_(attn|proj|fc)\.weight$")  # GPT-2's Conv1D holds (in, out)
_ROTARY = re.compile(r"\.(q|k)_proj\.weight$")
_BLOCK = 32  # weights that share a scale in q8_0; other rows are written in f16
_LOST_BY_QUANTIZING = 0.15  # of a matrix, the root of the mean square: 4.5 bits a weight lose 0.07 of normal weights
_QUANTIZER, _BINDING = "llama-quantize", "llama_cpp"
_BY_BINDING = (
    "import sys, llama_cpp as c; settings = c.llama_model_quantize_default_params(); "
    "settings.ftype = c.LLAMA_FTYPE_MOSTLY_Q4_K_M; "
    "sys.exit(c.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), settings))"
)
_GENERATION = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")  # a tag of transformers alone


def require_gguf(folder: Path, tokenizer: Tokenizer, kind: GgufType) -> LlamaCppForm:
    """The form of the tokenizer in llama.cpp, where the model in a folder and its tokenizer have one.

    Raises:
        ConfigError: they have none; or this machine has nothing to quantize with.
    """
    asked = f"export.gguf={kind.name}"
    if kind is GgufType.q4_k_m and not shutil.which(_QUANTIZER) and find_spec(_BINDING) is None:
        raise ConfigError(
            f"{asked} is made by llama.cpp's own quantizer, which is not here. Put {_QUANTIZER} of llama.cpp on the "
            "PATH, or pip install llama-cpp-python; export.gguf=q8_0 needs neither."
        )
    if reason := _why_not(open_config(folder)):
        raise ConfigError(f"{asked}: {reason}. Leave export.gguf out.")
    form = llama_cpp_form(tokenizer)
    if isinstance(form, str):
        raise ConfigError(
            f"{asked}: {form}. Leave export.gguf out, or train with tokenizer=byte_bpe, which llama.cpp can do."
        )
    return form


def _why_not(config: Any) -> str | None:
    fixed = _FIXED.get(config.model_type)
    if fixed is None:
        return f"{config.model_type} is not among {', '.join(_FIXED)}, which are proved to give the same in llama.cpp"
    for name, value in fixed.items():
        if (found := getattr(config, name, value)) != value:
            return f"llama.cpp has {name}={value} for {config.model_type}, and this model has {found}"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return None if rope == "default" else f"rope_type={rope} is not written"


def write_gguf(folder: Path, form: LlamaCppForm, *, kind: GgufType, name: str, positions: int) -> Path:
    """Write model.gguf in a model's folder, with its tokenizer and chat template, and read it back.

    Raises:
        UnequalError: a tensor of the file is not that of the folder.
        ConfigError: llama.cpp's quantizer is needed, and failed.
    """
    config, path = open_config(folder), folder / "model.gguf"
    tensors = dict(_tensors(folder, config, positions))
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_name(name)
    written = GgufType.f32 if kind is GgufType.q4_k_m else kind
    file_type = "ALL_F32" if written is GgufType.f32 else f"MOSTLY_{written.name.upper()}"
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config, positions)
    _add_tokenizer(writer, folder, form, size=config.vocab_size)
    for key, tensor in tensors.items():
        qtype = _type_of(key, tensor, written)
        writer.add_tensor(key, gguf.quantize(tensor, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_gguf(path, tensors)
    if kind is GgufType.q4_k_m:
        _quantize(path)
        check_gguf(path, tensors)
    return path


def _quantize(path: Path) -> None:
    """Put a file in 4.5 bits a weight in the place of the one that is there.

    Raises:
        ConfigError: llama.cpp's quantizer failed; with the last that it said.
    """
    files = [str(path), str(target := path.with_suffix(".q4_k_m"))]
    program = shutil.which(_QUANTIZER)
    command = [program, *files, "Q4_K_M"] if program else [sys.executable, "-c", _BY_BINDING, *files]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode or not target.is_file():
        last = done.stdout.strip().rpartition("\n")[2] or "nothing was said"
        raise ConfigError(f"export.gguf=q4_k_m: llama.cpp's quantizer ended with {done.returncode}: {last}")
    os.replace(target, path)


def check_gguf(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Compare each tensor of a file with what it was made of: the same bits, or nearly the values where llama.cpp cut.

    Raises:
        UnequalError: one is missing, is another, or is too much.
    """
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for key in dict.fromkeys([*tensors, *found]):
        if key not in tensors or key not in found or not _is_same(found[key], tensors[key]):
            raise UnequalError(f"{path.name}: {key} is not what was written. Nothing was exported.")


def _is_same(read: Any, tensor: np.ndarray) -> bool:
    try:
        return bool(np.array_equal(read.data, gguf.quantize(tensor, read.tensor_type)))
    except NotImplementedError:  # the package can read what llama.cpp quantizes to, and not write it
        lost = gguf.dequantize(read.data, read.tensor_type).reshape(tensor.shape) - tensor
        return bool(np.sqrt(np.mean(lost**2)) <= _LOST_BY_QUANTIZING * np.sqrt(np.mean(tensor**2)))


def _tensors(folder: Path, config: Any, positions: int) -> Iterator[tuple[str, np.ndarray]]:
    """llama.cpp's name of each tensor, and its values in fp32."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            key = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if key is None:
                raise UnequalError(f"{name} has no name in llama.cpp. Leave export.gguf out.")
            yield key, _laid_out(name, tensor.float(), config, positions).contiguous().numpy()


def _laid_out(name: str, tensor: torch.Tensor, config: Any, positions: int) -> torch.Tensor:
    if config.model_type == "gpt2":
        if name.endswith("wpe.weight"):
            return tensor[:positions]  # those that were trained
        return tensor.T if _TRANSPOSED.search(name) else tensor
    if config.model_type == "llama" and (which := _ROTARY.search(name)):
        heads = config.num_attention_heads if which[1] == "q" else config.num_key_value_heads
        # llama.cpp turns neighbours of a head, transformers its two halves
        return tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
    return tensor


def _type_of(key: str, tensor: np.ndarray, kind: GgufType) -> Any:
    """Norms, biases and positions stay as they are: llama.cpp adds them in f32."""
    if tensor.ndim == 1 or key.startswith("position_embd"):
        return gguf.GGMLQuantizationType.F32
    if kind is GgufType.q8_0 and tensor.shape[-1] % _BLOCK:
        return gguf.GGMLQuantizationType.F16
    return gguf.GGMLQuantizationType[kind.name.upper()]


def _add_shape(writer: Any, config: Any, positions: int) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def _add_tokenizer(writer: Any, folder: Path, form: LlamaCppForm, *, size: int) -> None:
    tokens, types = _tokens(read_json(folder / TOKENIZER), form, size)
    writer.add_tokenizer_model(form.model)
    writer.add_tokenizer_pre(form.pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if form.model == "llama":
        writer.add_token_scores([-float(number) for number in range(size)])  # an earlier merge before a later one
        writer.add_add_space_prefix(False)
    rest = gguf.SpecialVocab(folder, load_merges=form.model == "gpt2")  # special tokens, and that bos begins a text
    rest.chat_template = rest.chat_template and _GENERATION.sub(r"{#\1 \2#}", rest.chat_template)
    rest.add_to_gguf(writer, quiet=True)


def _tokens(state: dict[str, Any], form: LlamaCppForm, size: int) -> tuple[list[str], list[int]]:
    """The text and the type of each id."""
    kinds = gguf.TokenType
    tokens, types = [f"[PAD{number}]" for number in range(size)], [int(kinds.UNUSED)] * size
    for token, number in state["model"]["vocab"].items():
        is_byte = form.model == "llama" and re.fullmatch("<0x[0-9A-F]{2}>", token)
        tokens[number], types[number] = token, int(kinds.BYTE if is_byte else kinds.NORMAL)
    for added in state["added_tokens"]:
        is_unknown = added["content"] == state["model"].get("unk_token")
        tokens[added["id"]], types[added["id"]] = added["content"], int(kinds.UNKNOWN if is_unknown else kinds.CONTROL)
    return tokens, types
