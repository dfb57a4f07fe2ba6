"""Every file in conf/ composes, and what cannot be composed or go together is one line that names the key."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal import utils as hydra_utils
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from yaml import YAMLError

from llm.config import fields
from llm.config.compose import composed, data_presets, data_settings, from_hydra, run_command
from llm.config.fields import HOW, check_settings, identity_settings, setting
from llm.config.overrides import explain, readable, to_paste
from llm.config.stages import STAGES
from llm.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
GROUPS = ("tokenizer", "data", "model", "optimizer", "trainer", "logger")


def config_of(*overrides, conf=CONF):
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        return from_hydra(compose("config", list(overrides)))


def refused(*overrides, conf=CONF):
    """The one line that these overrides give."""
    with pytest.raises((HydraException, ValueError, YAMLError)) as caught:  # a ValueError for a group that is null
        config_of(*overrides, conf=conf)
    return str(caught.value) if isinstance(caught.value, ConfigError) else explain(caught.value)


def choices(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def train(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


NEEDED = {"stage=finetune": ["base=x"], "stage=evaluate": ["run=x"], "stage=export": ["run=x"]}
OF_CHOICE = {"pretrained": "{}.path=x", "extend": "{}.path=x", "mixture": "data.parts={{law: {{use: korean_law}}}}"}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_every_choice_composes_in_a_stage_that_uses_it_and_is_named_after_its_file(stage):
    settings, is_tuning = data_settings(choices("data")), stage == "finetune"
    of_stage = {group: choices(group) for group in (("trainer", "logger") if is_tuning else GROUPS)}
    of_stage["data"] = [name for name, each in settings.items() if (each["kind"] == "conversations") == is_tuning]
    of_stage["optimizer"] = ["adamw_full", "adamw_lora"] if is_tuning else ["adamw", "muon"]
    for number in range(max(map(len, of_stage.values()))):  # of each group another one at a time
        chosen = {group: known[number % len(known)] for group, known in of_stage.items()}
        words = [f"stage={stage}", *NEEDED.get(f"stage={stage}", ()), *(f"{g}={each}" for g, each in chosen.items())]
        words += ["data.path=x"] if not {"source", "path"} & settings[chosen["data"]].keys() else []
        words += [OF_CHOICE[each].format(group) for group, each in chosen.items() if each in OF_CHOICE]
        config = config_of(*words)
        for group, choice in chosen.items():
            assert getattr(getattr(config, group), "name", choice) == choice


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_composes_with_a_logger(stage):
    config = config_of(f"stage={stage}", "logger=wandb", *NEEDED.get(f"stage={stage}", ()))
    assert (config.stage, config.logger.mode.name) == (stage, "auto")


@pytest.mark.parametrize(
    "override", [f"{group}={choice}" for group in ("experiment", "sweep") for choice in choices(group)]
)
def test_every_experiment_and_sweep_composes(override):
    assert config_of(override).stage in STAGES


def test_stages_mirror_modules():
    files = (ROOT / "llm" / "stage").glob("*.py")
    modules = sorted(path.stem for path in files if "\nSTAGE = " in path.read_text(encoding="utf-8"))
    assert sorted(STAGES) == choices("stage") == modules


# What cannot be is one line that names the key.
LINES = {
    "optimizer.learning_rat=1": "unknown key optimizer.learning_rat. Did you mean optimizer.learning_rate?",
    "+optimizer.x=1": "unknown key optimizer.x. Known here: algorithm, learning_rate",
    "learning_rate=1": "unknown key learning_rate. Did you mean optimizer.learning_rate?",
    "model=gpt3_tiny": "model=gpt3_tiny is not a choice. Did you mean model=gpt2_tiny?",
    "stage=finetune": "base is missing. Set base=<value>.",
    "stage=tokenizer model=gpt2_tiny": "model is not a group of this stage. It belongs to stage=pretrain",
    "trainer.max_steps=abc": "trainer.max_steps: Value 'abc' of type 'str' could not be converted to Integer",
    "trainer.precision=fp16": "trainer.precision: Invalid value 'fp16', expected one of [auto, fp32, bf16]",
    "optimizer=null": "Config group override must be a string or a list.",
    "a": "cannot read the override 'a'. Write key=value.",
    "'name=a[],b'": """value of 'name=a[],b'. If it is meant as one text, write 'name="a[],b"'.""",
    "'data.layout.roles={의뢰인: user}'": "a key in { } must be in Latin letters. Write it in a YAML file of conf/.",
    "'data.map={question: a b}'": "data.map is not there yet. Add it with '+data.map={question: a b}'",
    "tokenizer.model.foo=1": "tokenizer.model.foo is not there yet. Add it with +tokenizer.model.foo=1",
    "stage=tokenizer,shards": """Add -m to sweep, or write 'stage="tokenizer,shards"'.""",
    "'name=${foo}'": "name: Interpolation key 'foo' not found",
    "name=a/b": "name=a/b cannot name a folder. Start with a letter or digit",
    "data=korean_law_qa": "data=korean_law_qa is conversations, but stage=pretrain learns from text",
    "data=text": "data.path is missing. Set data.path=<file, folder or glob of txt, jsonl, json, csv, tsv or parquet>",
    "data.path=x": "data.path=x is not what korean_law reads. Choose data=text.",
    "'+data.map={txt: a}'": "data.map: txt is nothing that data=korean_law reads. Did you mean text?",
    "'+data.parts={a: {use: korean_law}}'": "data.parts is for data=mixture, not for korean_law.",
    "data=mixture": "data.parts is empty. Set data.parts={law: {use: korean_law, weight: 3}",
    "trainer.max_tokens=1e9": "trainer.max_tokens takes a whole number. Write trainer.max_tokens=1000000000.",
    "logger.tags=a": "logger.tags is a list. Write it in brackets: 'logger.tags=[...]'.",
    "data=mixture 'data.parts={a: {use: mien}}'": "Did you mean data.parts.a.use=mixture?",
    "data=mixture 'data.parts={a: {use: korean_law, x: 1}}'": "unknown key data.parts.a.x. Known here: kind, source,",
    "data=mixture 'data.parts={a/b: {use: korean_law}}'": "data.parts.a/b: 'a/b' cannot name a part.",
    "data=mixture 'data.parts={a: {use: korean_law, weight: 1}, b: {use: korean_law}}'": "data.parts.b.weight: give",
    "stage=finetune base=x data.packing=concatenate": "data.packing=concatenate would cut conversations anywhere.",
    "tokenizer.superword_share=0.1": "tokenizer.superword_share=0.1 needs tokenizer.model=BPE, and a tokenizer.",
    "data.sequence_bytes=1000 data.batch_tokens=4096": (
        "data.batch_tokens=4096 is not known in rows before data.sequence_bytes=1000 is in tokens. Set data.batch_size "
        "in place of data.batch_tokens."
    ),
    "data.batch_tokens=1000": "data.batch_tokens=1000 is no multiple of data.sequence_length=256. Set it to 768.",
    "data.batch_size=3 trainer.devices=2": "data.batch_size=3 gives trainer.devices=2 on trainer.num_nodes=1 unequal",
    "data.layout.group_pattern=a data.layout.group=a data=text data.path=x": "group_pattern=a needs one pair of ( )",
    "trainer.strategy=fsdp": "trainer.strategy=fsdp is for several devices, but trainer.devices=1",
    "trainer.strategy=fsdp trainer.devices=2 trainer.compile=true": "trainer.strategy=fsdp breaks the graph of",
    "trainer.max_bytes=1 trainer.max_flops=1": "trainer.max_bytes and trainer.max_flops are both set.",
    "stage=finetune base=x trainer.max_tokens=9": "trainer.max_tokens is a budget of stage=pretrain. Set trainer.max_",
    "model.max_position_embeddings=100": "data.sequence_length=256 is longer than model.max_position_embeddings=100",
    "model.num_heads=7": "model.hidden_size=160 does not divide by model.num_heads=7. Set model.num_heads to a divisor",
    "model=llama_tiny model.hidden_size=12": "rotary positions need an even one",
    "model=qwen3_moe_tiny model.num_experts=1": "model.num_experts_per_token=2 is more than model.num_experts=1.",
    "stage=finetune base=x optimizer=muon": "optimizer.algorithm=muon is for whole matrices.",
    "stage=finetune base=x lora.method=dora trainer=gpu": "trainer.compile=true is not for lora.method=dora.",
    "stage=finetune base=x lora.target_modules=[]": "lora.target_modules=[] is empty. Name layers, or",
    "stage=finetune base=x trainer.devices=2 trainer.strategy=fsdp lora.method=qlora": "but lora.method=qlora",
    "tokenizer=pretrained": "tokenizer.path is missing.",
    "tokenizer.pad_token=x": "tokenizer.pad_token=x is not one of tokenizer.special_tokens",
    "tokenizer.vocab_size=100": "tokenizer.vocab_size=100 is too small",
}


@pytest.mark.parametrize(("typed", "line"), LINES.items())
def test_what_cannot_be_is_one_line_that_names_the_key(typed, line):
    message = refused(*shlex.split(typed))
    assert line in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("file", "text", "overrides", "line"),
    [
        (
            "model/gpt2_tiny.yaml",
            "architecture: gpt2\nnum_layer: 2\n",
            [],
            "conf/model/gpt2_tiny.yaml: unknown key model.num_layer. Did you mean model.num_layers?",
        ),
        (
            "experiment/mine.yaml",
            "# @package _global_\ndefaults:\n  - override /modle: gpt2_tiny\n",
            ["experiment=mine"],
            "conf/experiment/mine.yaml: modle is not a group of this stage. Did you mean model?",
        ),
        (
            "optimizer/mine.yaml",
            "learning_rate: [\n",
            ["optimizer=mine"],
            "optimizer/mine.yaml:2: expected the node content, but found '<stream end>'.",
        ),
    ],
)
def test_a_mistake_in_a_yaml_names_the_file_and_the_key(file, text, overrides, line, tmp_path):
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / file).write_text(text)
    assert refused(*overrides, conf=tmp_path / "conf").removeprefix(f"{tmp_path}/conf/") == line


def test_aliases_that_stand_for_millions_of_values_are_refused_before_they_are_written_out(tmp_path):
    path = tmp_path / "experiment" / "mine.yaml"
    path.parent.mkdir()
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    path.write_text("\n".join(["# @package _global_", "trainer: &a0 {max_steps: 3}", *lines]) + "\n")
    made = train(f"--config-dir={tmp_path}", "experiment=mine", "--cfg=job", cwd=ROOT)
    line = f"error: {path}: it has more than 20 aliases. Write out what is meant.\n"
    assert (made.returncode, made.stderr) == (2, line)


# Choices of another folder


@pytest.fixture
def elsewhere(tmp_path):
    """A folder beside conf/ that has a choice of data, which is built on one of conf/."""
    (tmp_path / "elsewhere" / "data").mkdir(parents=True)
    mine = tmp_path / "elsewhere" / "data" / "mine.yaml"
    mine.write_text("defaults:\n  - aihub_sns\n  - _self_\ntext_field: 글\n", encoding="utf-8")
    return tmp_path / "elsewhere"


def test_a_choice_of_another_folder_is_one_of_data_and_of_a_part(elsewhere, tmp_path):
    shown = train(f"hydra.searchpath=[file://{elsewhere}]", "data=mine", "--cfg", "job", cwd=tmp_path).stdout
    assert "\n  name: mine\n" in shown and "text_field: 글\n" in shown and "records: data[]\n" in shown
    part = train(f"--config-dir={elsewhere}", "data=mixture", "data.parts={a: {use: mine}}", cwd=tmp_path)
    assert part.stderr.startswith("error: data.parts.a.path is missing. Set data.parts.a.path=")


def test_a_choice_of_another_folder_is_one_of_the_doctor(elsewhere, tmp_path):
    shutil.copytree(CONF, tmp_path / "conf")
    with (tmp_path / "conf" / "config.yaml").open("a", encoding="utf-8") as file:
        file.write(f"  searchpath: [file://{elsewhere}]\n")
    with initialize_config_dir(version_base="1.3", config_dir=str(tmp_path / "conf")):
        mine = data_presets()["mine"]
    assert (mine.name, mine.text_field, mine.layout.records) == ("mine", "글", "data[]")


# The command


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("optimizer.learning_rat=1", "unknown key optimizer.learning_rat. Did you mean optimizer.learning_rate?"),
        ("-m model.num_heads=4,7", "model.hidden_size=160 does not divide by model.num_heads=7. "
                                   "Set model.num_heads to a divisor of 160."),
        ("sweep=learning_rate seed=-1", "seed=-1 is out of range. Set 0 or more."),
        ("-m seed=1,2 hydra.sweeper._target_=os.system", "Invalid plugin 'os.system': not the hydra_plugins package"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_one_line_and_exit_code_2_with_nothing_written(arguments, line, tmp_path):
    ended = train(*shlex.split(arguments), cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"error: {line}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["sweeper: {_target_: os.system}", "callbacks: {x: {_target_: os.system}}"])
def test_a_file_that_names_code_to_run_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(f"# @package _global_\nhydra: {{{text}}}\n")
    ended = train("-m", "--config-dir", str(tmp_path), "sweep=mine", "seed=1,2", cwd=tmp_path)
    assert ended.returncode == 2 and re.fullmatch(r"error: .*'os\.system'.*\n", ended.stderr)


@pytest.mark.parametrize("words", [[], ["-m", "hydra/launcher=basic", "hydra/sweeper=basic"]])
def test_a_bug_in_a_job_is_no_wrong_config_and_hydra_leaves_no_variable_behind(words, tmp_path, monkeypatch):
    def bug(job):
        raise ValueError(dict(os.environ) == before)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *words, "stage=export", "run=x"])
    monkeypatch.setattr(hydra_utils, "run_and_report", hydra_utils.run_and_report)
    before = dict(os.environ)
    with pytest.raises(ValueError, match="True"):
        run_command(bug)


def test_hydra_full_error_shows_the_traceback(tmp_path):
    ended = train("optimizer.learning_rat=1", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert ended.stderr.startswith("Traceback")


def test_a_sweep_over_paths_in_hangul_of_a_choice_of_another_folder_says_which_failed(elsewhere, tmp_path):
    for name in ("글", "책"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name} {number}" for number in range(40)))
    (elsewhere / "data" / "mine.yaml").write_text("kind: text\nheld_out_share: 0.5\n")
    small = ["stage=tokenizer", "logger=local", "tokenizer=byte_bpe", "tokenizer.vocab_size=300", "data=mine"]
    swept = ["data.path=글.txt,b.txt,책.txt", "name=실험-${hydra:job.num}"]
    ended = train("-m", f"--config-dir={elsewhere}", *small, *swept, cwd=tmp_path)
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert [error.split(":")[1] for error in errors] == [" data.path=b.txt"]
    assert ended.returncode == 3  # a part of the jobs
    records = [path.read_text(encoding="utf-8") for path in tmp_path.glob("outputs/tokenizer/*/run.json")]
    assert sorted(json.loads(record)["name"] for record in records) == ["실험-0", "실험-2"]


def test_help_lists_groups_settings_and_examples(tmp_path):
    shown = train("--help", cwd=tmp_path).stdout
    for line in ("optimizer: adamw, adamw_full, adamw_lora, muon", "  learning_rate: 0.001"):
        assert f"\n{line}" in shown
    groups = shown.partition("== Choices (group=option) ==")[2].partition("== Settings")[0]
    assert re.findall(r"^(\w+):", groups, re.MULTILINE) == sorted([*GROUPS, "stage", "experiment", "sweep"])
    examples = [shlex.split(line)[2:] for line in re.findall(r"^  (python train\.py .*)", shown, re.MULTILINE)]
    assert len(examples) == 5
    for words in examples:
        assert config_of(*first_values(words))


def test_completion_of_a_group_answers_with_its_choices(tmp_path):
    line = "train.py optimizer=adam"
    ended = train("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert ended.stdout.split() == ["optimizer=adamw", "optimizer=adamw_full", "optimizer=adamw_lora"]


# What is typed: what Hydra's grammar cannot read is taken as text.
TEXTS = {
    "data.text_field=내용[].글": "내용[].글",
    "data.text_field=고객질문(요청)|상담사": "고객질문(요청)|상담사",
    'data.text_field="data[].form"': "data[].form",
    "data.text_field=본문 내용": "본문 내용",
    "data.layout.files=[가.json,나 다.json]": ["가.json", "나 다.json"],
    "+data.layout.roles={gpt: 상담사}": {"gpt": "상담사"},
    "data.layout.header=false": False,
}


@pytest.mark.parametrize(("typed", "value"), TEXTS.items())
def test_a_text_that_hydra_cannot_read_needs_no_quotes(typed, value):
    found = composed(["data=text", "data.path=x", typed])
    for key in typed.partition("=")[0].lstrip("+").split("."):
        found = found[key]
    assert found == value


def test_what_can_be_read_stays_as_it_is_typed():
    words = ["-m", "--cfg", "lr=1e-3,3e-4", "a=[b,{c: d}]", "a=x y", "a=[b,", "a=${b}", "~a", "a=", "a='한'", "가=1"]
    assert list(map(readable, words)) == words


@pytest.mark.parametrize("text", ["내용", "1", "null", "data[].form", "a,b", 'say "x"', "it's", "C:\\글\\", "*$HOME"])
def test_what_is_to_be_pasted_sets_this_very_text(text):
    said = subprocess.run(["bash", "-c", f"printf %s {to_paste('name', text)}"], capture_output=True, text=True)
    override = OverridesParser.create().parse_overrides([said.stdout])[0]
    value = override.value()
    assert override.key_or_group == "name"
    assert (value.text if isinstance(value, QuotedString) else value) == text


@pytest.mark.parametrize(
    ("key", "others"),
    [
        ("outputs", []),
        ("data.path", ["data=text"]),
        ("tokenizer.path", ["tokenizer=pretrained"]),
        ("model.path", ["model=pretrained"]),
        ("base", ["stage=finetune"]),
        ("chat_template", ["stage=finetune", "base=x"]),
        ("run", ["stage=evaluate"]),
        ("evaluation.task_path", ["stage=evaluate", "run=x", "evaluation.tasks=[a]"]),
        ("data.parts.a.path", ["data=mixture", "data.parts={a: {use: text, path: '~/글'}}"]),
    ],
)
def test_a_path_may_begin_with_the_home_folder(monkeypatch, key, others):
    monkeypatch.setenv("HOME", "/home/나")
    found = config_of(*others, *([] if "parts" in key else [readable(f"{key}=~/글")]))
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == "/home/나/글"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-m data.batch_tokens=4096 data.batch_size=8,16", "data.batch_size=8 is not used: it is computed from data."),
        ("sweep=tokenizers trainer.max_steps=9", "max_bytes=3000000. Set trainer.max_bytes=null, or leave trainer"),
        ("--cfg=job data.batch_size=8 data.batch_tokens=null", ""),
    ],
)
def test_what_is_typed_is_not_computed_from_something_else_in_silence(words, message, tmp_path):
    ended = train(*words.split(), cwd=tmp_path)
    assert ended.returncode == (2 if message else 0) and message in ended.stderr
    assert list(tmp_path.iterdir()) == []


# Identity


ALWAYS = "name outputs reuse dry_run logger "
FILES = "name path made_by rights num_workers sequence_bytes batch_tokens map parts tokenizer_part "
LEFT_OUT = {  # of a stage's identity, by group, written out so that no setting leaves it or comes to it unseen
    "documents": {
        "": ALWAYS,
        "data": FILES + "sequence_length batch_size packing system_prompt overlong",
        "data.layout": "shape tags repeated_turns",
        "data.cleaning": "",
    },
    "tokenizer": {
        "": ALWAYS,
        "tokenizer": "name path new_tokens superword_share superword_pre_tokenizer ladder allow_lossy",
    },
    "shards": {"": ALWAYS + "tokenizer"},
    "pretrain": {
        "": ALWAYS + "tokenizer lora",  # which is null where no adapters are trained
        "data": FILES + "kind source text_field layout cleaning held_out_share bad_records system_prompt overlong",
        "model": "name path new_embeddings trainable pad_vocab_to_multiple_of",
        "optimizer": "embedding_learning_rate",
        "trainer": "max_bytes max_tokens max_flops compile activation_checkpointing accelerator devices num_nodes "
        "residual_precision strategy micro_batch_size num_workers profile_steps log_every_steps validate_every_steps "
        "checkpoint_every_steps checkpoint_every_minutes keep_checkpoints keep_best stop_after_skipped_steps "
        "sample_prompts sample_tokens sample_temperature",
    },
    "finetune": {
        "": ALWAYS + "base chat_template",  # whose contents are
        "data": FILES,
        "data.layout": "",
        "data.cleaning": "",
        "lora": "",
        "optimizer": "embedding_learning_rate",
    },
    "evaluate": {"": ALWAYS + "run", "evaluation": "task_path batch_tokens accelerator"},
    "export": {"": ALWAYS + "run", "export": "max_logit_difference"},
}


@pytest.mark.parametrize("stage", LEFT_OUT)
def test_the_identity_has_every_setting_but_those_of_how_a_run_is_carried_out(stage):
    config = config_of(f"stage={stage}", *NEEDED.get(f"stage={stage}", ()))
    for group, left_out in LEFT_OUT[stage].items():
        settings, known = config, identity_settings(config)
        for name in filter(None, group.split(".")):
            settings, known = getattr(settings, name), known[name]
        assert settings.__dataclass_fields__.keys() - known.keys() - {"stage"} == {*left_out.split()}


@pytest.mark.parametrize(
    ("choice", "unused", "said"),
    [
        ("optimizer.algorithm=adamw", "optimizer.muon_momentum=0.9", "optimizer.algorithm=adamw"),
        ("optimizer.schedule=cosine", "optimizer.decay_share=0.1", "optimizer.schedule=cosine"),
        ("model=gpt2_tiny", "model.num_key_value_heads=2", "model.architecture=gpt2"),
        ("tokenizer=pretrained tokenizer.path=x", "tokenizer.min_frequency=3", "tokenizer.path=x"),
        ("stage=finetune base=x lora.method=full", "lora.rank=16", "lora.method=full"),
        ("stage=finetune base=x", "data.num_workers=2", "data.kind=conversations"),
        ("stage=export run=x export.merge=false", "export.gguf=f16", "export.merge=false"),
    ],
)
def test_what_a_choice_does_not_use_is_left_out_of_the_run_and_it_is_said(choice, unused, said, caplog):
    fields._say_once.cache_clear()
    with_it, without = config_of(*choice.split(), unused), config_of(*choice.split())
    assert with_it == without and identity_settings(with_it) == identity_settings(without)
    assert caplog.messages == [f"{unused} is not used with {said}, and is left out"]


# A setting by itself


@dataclass(kw_only=True, slots=True)
class Toppings:
    amount: int = setting(3, at_least=1, at_most=9)


@dataclass(kw_only=True, slots=True)
class Toy:
    """What a group of settings needs: its fields. Nothing else in the code knows of them."""

    share: float = setting(0.5, above=0, below=1)
    rate: float | None = setting(None, not_of=("cook",), at_least=0)
    cap: float = setting(1.0, above=0, at_most=float("inf"))
    label: str = setting("a", HOW, fault=lambda text: None if text.isalpha() else "is no word. Write letters.")
    folder: str | None = setting(None, HOW, is_file=True)
    later: int | None = setting(None, only_where_set=True, at_least=1)
    names: list[str] = setting(["a"])
    toppings: Toppings = setting(Toppings())

    def __post_init__(self) -> None:
        check_settings(self, "toy")


def toy(**settings):
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Toy), settings))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"share": 1}, "toy.share=1.0 is out of range. Set more than 0 and less than 1."),
        ({"share": "nan"}, "toy.share=nan is out of range. Set more than 0 and less than 1."),
        ({"rate": -0.1}, "toy.rate=-0.1 is out of range. Set 0 or more, or null."),
        ({"rate": "inf"}, "toy.rate=inf is out of range. Set 0 or more, or null."),
        ({"cap": 0}, "toy.cap=0.0 is out of range. Set more than 0 and up to inf."),
        ({"label": "1"}, "toy.label=1 is no word. Write letters."),
        ({"toppings": {"amount": 10}}, "toy.toppings.amount=10 is out of range. Set 1 or more and up to 9."),
    ],
)
def test_a_setting_out_of_its_range_is_one_line_that_names_it_and_the_range(settings, line):
    with pytest.raises(ConfigError) as caught:
        toy(**settings)
    assert str(caught.value) == line


def test_a_setting_is_in_the_identity_unless_it_says_otherwise():
    made = toy(rate=0, cap="inf", toppings={"amount": 9})  # the ends of their ranges
    assert (made.rate, made.cap, made.toppings.amount) == (0, float("inf"), 9)
    everywhere = {"share": 0.5, "cap": 1.0, "names": ["a"], "toppings": {"amount": 3}}
    assert identity_settings(toy(label="b", folder="x"), "cook") == everywhere
    assert identity_settings(toy(), "eat") == {**everywhere, "rate": None}
    assert identity_settings(toy(later=1), "cook") == {**everywhere, "later": 1}


# The docs


def commands_of_the_docs() -> list[str]:
    pages = (path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    return [line for page in pages for line in re.findall(r"^(?: {4})?(python train\.py.*)$", page, re.MULTILINE)]


def first_value(override: Override) -> str:
    """What the first job of a sweep has of it."""
    if not override.is_sweep_override():
        return override.input_line
    value = override.value()
    first = value.start if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={first}"


def first_values(words: list[str]) -> list[str]:
    """The overrides of a command's first job: without Hydra's own flags, each sweep cut to its first value."""
    overrides = get_args_parser().parse_args(words).overrides
    return [first_value(override) for override in OverridesParser.create().parse_overrides(overrides)]


def test_every_command_of_the_docs_passes_the_schema():
    commands = commands_of_the_docs()
    assert len(commands) > 10
    for command in commands:
        assert config_of(*first_values(shlex.split(command, comments=True)[2:])), command
