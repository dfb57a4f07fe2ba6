"""Folders of models from anywhere: none of their code is run, and what is damaged in them is one line at every door."""

import ast
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm import inspect, tokenize, verify
from llm import model as models
from llm.chat import command
from llm.config.training import Architecture, ModelConfig
from llm.errors import one_line_errors
from llm.tokenizer.folder import read_special
from tests.korean import save_preset
from tests.test_stages import CHAT, TINY, run, write_conversations, write_text
from tests.tuned import quick_peak  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[1]
TALK = ["--prompt", "사람은 어디에 있나요?", "--max-new-tokens", "4", "--temperature", "0"]
CODE = "from pathlib import Path\nPath({canary!r}).touch()\nclass C: pass\nclass M: pass\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound folder that no run made."""
    folder = save_preset("byte_bpe", tmp_path_factory.mktemp("whole") / "mine", vocab_size=330)
    shape = ModelConfig(name="mine", architecture=Architecture.llama, num_layers=1, num_heads=2, hidden_size=16)
    torch.manual_seed(0)
    models.save(models.build(shape, vocab_size=330, special=read_special(folder)), folder)
    (folder / "tokenizer.sha256").unlink()
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "mine"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def canary_of(folder: Path) -> Path:
    return folder.parent / "canary"


def bring_code(folder: Path, **changes: Any) -> None:
    """Python beside the model that its config, its tokenizer and its generation all name."""
    code = CODE.format(canary=str(canary_of(folder)))
    (folder / "custom_generate").mkdir()
    for name in ("code.py", "custom_generate/generate.py"):
        (folder / name).write_text(code, encoding="utf-8")
    of_model = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": ["code.C", "code.C"]}
    edit(folder / "config.json", auto_map=of_model, **changes)
    edit(folder / "tokenizer_config.json", auto_map=of_model)


# What is damaged


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")


def too_large_a_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes((2**60).to_bytes(8, "little") + weights.read_bytes()[8:])


def no_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def attention_kernel(folder: Path) -> None:
    edit(folder / "config.json", attn_implementation="flash_attention_3")


def odd_eos(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token={"text": "<|endoftext|>"})


def broken_pattern(folder: Path) -> None:
    edit(folder / "tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": "(" * 50}, "content": ""})


def deep_config(folder: Path) -> None:
    text = (folder / "config.json").read_text(encoding="utf-8")
    deep = '{"deep": ' + "[" * 100_000 + "]" * 100_000 + ", "
    (folder / "config.json").write_text(deep + text[1:], encoding="utf-8")


def index_of_weights_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def too_many_layers(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=10**6)


def unknown_kind_with_code(folder: Path) -> None:
    bring_code(folder, model_type="mine_alone")


WEIGHTS = "mine does not hold a model's weights: "
DAMAGE: dict[Callable[[Path], None], tuple[int, str]] = {
    pickled: (74, WEIGHTS + r"model\.safetensors is missing, or lies elsewhere; no pickle is read"),
    too_large_a_header: (74, WEIGHTS + r"model\.safetensors cannot be read \(.*header.*too large"),
    no_weight: (74, WEIGHTS + r"1 weights are missing, such as model\.norm\.weight"),
    attention_kernel: (74, r"mine/config\.json asks for the attention flash_attention_3, and what a folder as"),
    odd_eos: (74, "mine cannot be used as a tokenizer: "),
    broken_pattern: (74, "mine.*tokenizer"),  # the library panics, and says so by itself, if it is let
    deep_config: (74, r"mine/config\.json cannot be read \(maximum recursion depth exceeded"),
    index_of_weights_elsewhere: (74, WEIGHTS + r"\.\./outside\.safetensors is missing, or lies elsewhere"),
    too_many_layers: (74, r"mine/config\.json: num_hidden_layers=1000000, and a model has 1,000 at most"),
    unknown_kind_with_code: (2, r"mine/config\.json: model_type mine_alone is none of transformers, and code that a m"),
}


def talk(folder: Path) -> None:
    command.main([str(folder), *TALK])


def tune(folder: Path) -> None:
    chats = write_conversations(folder.parent / "chats.jsonl")
    outputs = f"outputs={folder.parent / 'outputs'}"
    with one_line_errors():
        run("finetune", f"base={folder}", f"data.path={chats}", outputs, *CHAT)


def go_on(folder: Path) -> None:
    text = write_text(folder.parent / "text.jsonl")
    words = ["model=pretrained", f"model.path={folder}", "tokenizer=pretrained", f"tokenizer.path={folder}"]
    given = [*words, "data=text", f"data.path={text}", f"outputs={folder.parent / 'outputs'}"]
    with one_line_errors():
        run("pretrain", *given, *(line for line in TINY if not line.startswith(("model.", "tokenizer."))))


def evaluate(folder: Path) -> None:
    text = write_text(folder.parent / "text.jsonl")
    given = [f"run={folder}", "data=text", f"data.path={text}", "evaluation.num_items=4", "evaluation.num_prompts=2"]
    with one_line_errors():
        run("evaluate", *given, "data.sequence_length=64", "logger=local", f"outputs={folder.parent / 'outputs'}")


AT_A_DOOR = [
    *((talk, damage) for damage in DAMAGE),
    *((tune, broken_pattern), (go_on, pickled), (evaluate, unknown_kind_with_code), (go_on, unknown_kind_with_code)),
]


def name_of(value: Any) -> str:
    return getattr(value, "__qualname__", str(value)).split(".")[0]


@pytest.mark.parametrize(("door", "damage"), AT_A_DOOR, ids=name_of)
def test_a_damaged_folder_is_one_line_at_every_door(
    damage: Callable[[Path], None], door: Callable[[Path], None], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(folder)
    with pytest.raises(SystemExit) as stop:
        door(folder)
    shown = capfd.readouterr().err.splitlines()
    errors = [line for line in shown if line.startswith("error:")]
    assert not [line for line in shown if "panicked" in line or "[y/N]" in line], shown
    code, line = DAMAGE[damage]
    assert len(errors) == 1 and re.search(line, errors[0]), errors
    assert stop.value.code == code
    assert not canary_of(folder).exists()


@pytest.mark.parametrize("door", [go_on, evaluate], ids=name_of)
def test_code_beside_a_model_that_transformers_knows_is_not_run(door: Callable[[Path], None], folder: Path) -> None:
    bring_code(folder)
    door(folder)
    assert not canary_of(folder).exists()
    for made in folder.parent.glob("outputs/**/*config.json"):
        assert "auto_map" not in json.loads(made.read_text(encoding="utf-8")), made


def test_what_is_made_of_a_model_that_brings_code_runs_none_of_it(folder: Path) -> None:
    bring_code(folder)
    tune(folder)
    outputs = folder.parent / "outputs"
    (tuned,) = (outputs / "finetune").iterdir()
    talk(tuned)
    run("export", f"run={tuned}", f"outputs={outputs}")
    (exported,) = (outputs / "export").iterdir()
    talk(exported)
    verify.main([str(tuned), "--outputs", str(outputs)])
    tokenize.main([str(tuned), "사람", "--outputs", str(outputs)])
    with suppress(SystemExit):
        inspect.main([str(folder)])  # of whose JSON it shows what it finds
    assert not canary_of(folder).exists()
    assert "auto_map" not in (exported / "model" / "config.json").read_text(encoding="utf-8")
    assert "auto_map" not in (exported / "model" / "tokenizer_config.json").read_text(encoding="utf-8")


# The doors themselves

LOADERS = ("from_pretrained", "from_config")
SAFE = {"local_files_only": True, "trust_remote_code": False}
ASKED = {  # of each call that lets a library read a folder, the file and what it must be given
    ("pretrained.py", "AutoConfig.from_pretrained"): SAFE,
    ("pretrained.py", "AutoModelForCausalLM.from_pretrained"): SAFE | {"use_safetensors": True},
    ("pretrained.py", "AutoModelForCausalLM.from_config"): {"trust_remote_code": False},
    ("pretrained.py", "peft.PeftConfig.from_pretrained"): {"local_files_only": True},
    ("pretrained.py", "peft.PeftModel.from_pretrained"): {"local_files_only": True},
    ("folder.py", "PreTrainedTokenizerFast.from_pretrained"): SAFE,
}
OF_PICKLES = ("torch.load", "pickle.load", "pickle.loads", "joblib.load", "torch.hub.load")


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(file, what is called, the arguments by name that are constants) of every call in llm/."""
    for path in sorted((ROOT / "llm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                constants = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
                yield path.name, ast.unparse(node.func), constants


def test_every_call_that_loads_a_model_is_one_that_runs_no_code() -> None:
    found = [(file, called, given) for file, called, given in calls() if called.rpartition(".")[2] in LOADERS]
    for file, called, given in found:
        assert (file, called) in ASKED, f"{file}: {called} goes by itself; take what llm/model/pretrained.py has"
        assert ASKED[file, called].items() <= given.items(), f"{file}: {called} lacks one of {ASKED[file, called]}"
    assert len(found) == len(ASKED)
    assert not [(file, called) for file, called, _ in calls() if called in OF_PICKLES]
