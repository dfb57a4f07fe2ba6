"""Every file in conf/ composes, and what cannot be composed or go together is one line that names the key."""

import json
import logging
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal import utils as hydra_utils
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from yaml import YAMLError

from llm.config import aliases, fields
from llm.config.choices import data_presets
from llm.config.command import refuse_targets, run_command
from llm.config.compose import composed, from_hydra, refuse_computed
from llm.config.explain import explain
from llm.config.fields import HOW, ROWS, check_settings, identity_settings, setting
from llm.config.overrides import readable, to_paste
from llm.config.stages import STAGES
from llm.config.tokenizer import Alphabet
from llm.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
GROUPS = ("tokenizer", "data", "model", "optimizer", "trainer", "logger")
FSDP = ["stage=finetune", "base=x", "trainer.devices=2", "trainer.strategy=fsdp"]
STAGE_OF = {"adamw_lora": "finetune", "adamw_full": "finetune"}


def config_of(*overrides, conf=CONF):
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        return from_hydra(compose("config", list(overrides)))


def refused(*overrides, conf=CONF):
    """The one line that these overrides give."""
    with pytest.raises((HydraException, ValueError)) as caught:  # Hydra raises ValueError for a group that is null
        config_of(*overrides, conf=conf)
    return str(caught.value) if isinstance(caught.value, ConfigError) else explain(caught.value)


def choices(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("override", [f"{group}={choice}" for group in GROUPS for choice in choices(group)])
def test_every_choice_composes_in_a_stage_that_uses_it(override):
    group, choice = override.split("=")
    settings = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text(encoding="utf-8")) or {}
    stage = "finetune" if settings.get("kind") == "conversations" else STAGE_OF.get(choice, "pretrain")
    needed = ["base=x"] if stage == "finetune" else []
    needed += ["data.path=x"] if group == "data" and "source" not in settings else []
    needed += [f"{group}.path=x"] if choice == "pretrained" else []
    needed += ["data.parts={law: {use: korean_law}}"] if choice == "mixture" else []
    assert config_of(f"stage={stage}", override, *needed).stage == stage


@pytest.mark.parametrize("logger", choices("logger"))
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_takes_every_logger(stage, logger):
    needed = {"finetune": ["base=x"], "evaluate": ["run=x"], "export": ["run=x"]}.get(stage, [])
    config = config_of(f"stage={stage}", f"logger={logger}", *needed)
    assert config.logger.mode.name == {"local": "disabled", "wandb": "auto"}[logger]


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_composes(experiment):
    assert config_of(f"experiment={experiment}").stage in STAGES


@pytest.mark.parametrize("sweep", choices("sweep"))
def test_every_sweep_composes_and_sweeps_settings_that_exist(sweep):
    assert config_of(f"sweep={sweep}").stage in STAGES


@pytest.mark.parametrize("group", ["tokenizer", "data", "model"])
def test_a_choice_is_named_after_its_file(group):
    assert [yaml.safe_load((CONF / group / f"{c}.yaml").read_text())["name"] for c in choices(group)] == choices(group)


def test_stages_mirror_modules():
    files = (ROOT / "llm" / "stage").glob("*.py")
    modules = sorted(path.stem for path in files if "\nSTAGE = " in path.read_text(encoding="utf-8"))
    assert sorted(STAGES) == choices("stage") == modules


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["optimizer.learning_rat=1"], "unknown key optimizer.learning_rat. Did you mean optimizer.learning_rate?"),
        (["+optimizer.learning_rat=1"], "unknown key optimizer.learning_rat. Did you mean optimizer.learning_rate?"),
        (["+optimizer.x=1"], "unknown key optimizer.x. Known here: algorithm, learning_rate"),
        (["modle=a"], "unknown key modle. Did you mean model?"),
        (["trainer.max_steps=abc"], "trainer.max_steps: Value 'abc' of type 'str' could not be converted to Integer"),
        (["trainer.precision=fp16"], "trainer.precision: Invalid value 'fp16', expected one of [auto, fp32, bf16]"),
        (["model=gpt3_tiny"], "model=gpt3_tiny is not a choice. Did you mean model=gpt2_tiny?"),
        (["stage=pretrin"], "stage=pretrin is not a choice. Did you mean stage=pretrain?"),
        (["stage=finetune"], "base is missing. Set base="),
        (["stage=evaluate"], "run is missing. Set run=<the name or the folder of a pretraining or fine-tuning run>."),
        (["stage=tokenizer", "trainer.max_steps=3"], "trainer is not part of stage=tokenizer"),
        (["stage=tokenizer", "model=gpt2_tiny"], "model is not a group of this stage. It belongs to stage=pretrain"),
        (["a"], "cannot read the override 'a'. Write key=value."),
        (["한글=1"], "cannot read the override '한글=1'. Write key=value."),
        (["name=a[],b"], """value of 'name=a[],b'. If it is meant as one text, write 'name="a[],b"'."""),
        (
            ["data.layout.roles={의뢰인: user}"],
            "user}': a key in { } must be in Latin letters. Write it in a YAML file of conf/.",
        ),
        (["name=${foo}"], "name: Interpolation key 'foo' not found"),
        (["name=a/b"], "name=a/b cannot name a folder"),
        (["data=korean_law_qa"], "data=korean_law_qa is conversations, but stage=pretrain learns from text"),
        (["stage=finetune", "base=x", "data=korean_law"], "data=korean_law is text, but stage=finetune learns from"),
        (
            ["data=text"],
            "data.path is missing. Set data.path=<file, folder or glob of txt, jsonl, json, csv, tsv or parquet>",
        ),
        (["data.path=x"], "data.path=x is not used by data=korean_law"),
        (["data.held_out_share=1"], "data.held_out_share=1.0 is out of range. Set more than 0 and less than 1."),
        (["data.batch_size=0"], "data.batch_size=0 is out of range. Set 1 or more."),
        (
            ["stage=finetune", "base=x", "data.packing=concatenate"],
            "data.packing=concatenate is for text: it would cut conversations anywhere. Choose data.packing=best_fit, "
            "or padded.",
        ),
        (
            ["stage=finetune", "base=x", "data.num_workers=2"],
            "data.num_workers=2 is for text, which becomes shards; data=korean_law_qa does not. Leave it out.",
        ),
        (["data.packing=bestfit"], "data.packing: Invalid value 'bestfit', expected one of [concatenate, best_fit,"),
        (["data.num_workers=0"], "data.num_workers=0 is out of range. Set 1 or more, or null."),
        (
            ["data.batch_size=3", "trainer.devices=2"],
            "data.batch_size=3 over trainer.devices=2 gives unequal shares. Set data.batch_size=2 or 4, or other",
        ),
        (
            ["data.batch_size=8", "trainer.devices=8", "trainer.num_nodes=2"],
            "data.batch_size=8 over trainer.devices=8 on trainer.num_nodes=2 leaves some without a row. Set data.batch_"
            "size=16 or more.",
        ),
        (["trainer.num_nodes=0"], "trainer.num_nodes=0 is out of range. Set 1 or more."),
        (
            ["trainer.strategy=fsdp"],
            "trainer.strategy=fsdp is for several devices, but trainer.devices=1 and trainer.num_nodes=1. Raise one of",
        ),
        (
            ["trainer.strategy=fsdp", "trainer.devices=2", "trainer.compile=true"],
            "trainer.compile=true is one graph, which trainer.strategy=fsdp breaks at each block. Set trainer.strat",
        ),
        (["trainer.strategy=fdsp"], "trainer.strategy: Invalid value 'fdsp', expected one of [auto, ddp, fsdp]"),
        (["trainer.precision=fp16"], "trainer.precision: Invalid value 'fp16', expected one of [auto, fp32, bf16]"),
        (
            ["data.batch_tokens=1000"],
            "data.batch_tokens=1000 is no multiple of data.sequence_length=256. Set it to 768 or 1024.",
        ),
        (["data.batch_tokens=100"], "data.batch_tokens=100 is out of range. Set 256 or more."),
        (
            ["stage=finetune", "base=x", "data.batch_tokens=4096"],
            "data.batch_tokens=4096 is for text: conversations are rows of unequal length. Set data.batch_size in its",
        ),
        (["data.batch_size=8", "trainer.micro_batch_size=3"], "divide by trainer.micro_batch_size=3"),
        (
            ["model.max_position_embeddings=100"],
            "data.sequence_length=256 is longer than model.max_position",
        ),
        (["model.num_heads=7"], "model.hidden_size=160 does not divide by model.num_heads=7"),
        (["model=llama_tiny", "model.hidden_size=12"], "rotary positions need an even one"),
        (["model=llama_tiny", "model.num_key_value_heads=3"], "model.num_heads=4 does not divide by"),
        (["model.num_key_value_heads=2"], "model.num_key_value_heads=2 is no setting of gpt2. Leave it out."),
        (["name=-x"], "name=-x cannot name a folder. Start with a letter or digit"),
        ([f"name={'x' * 65}"], "cannot name a folder"),
        (["name=.."], "name=.. cannot name a folder"),
        (["seed=-1"], "seed=-1 is out of range. Set 0 or more."),
        (["model.intermediate_size=0"], "model.intermediate_size=0 is out of range. Set 1 or more, or null."),
        (["model.dropout=1"], "model.dropout=1.0 is out of range. Set 0 or more and less than 1."),
        (["optimizer.learning_rate=-1"], "optimizer.learning_rate=-1.0 is out of range. Set more than 0."),
        (["optimizer.learning_rate=nan"], "optimizer.learning_rate=nan is out of range. Set more than 0."),
        (
            ["optimizer.min_learning_rate_ratio=2"],
            "optimizer.min_learning_rate_ratio=2.0 is out of range. Set 0 or more and up to 1.",
        ),
        (["optimizer.weight_decay=-0.1"], "optimizer.weight_decay=-0.1 is out of range. Set 0 or more and up to 1."),
        (["optimizer.beta2=1"], "optimizer.beta2=1.0 is out of range. Set 0 or more and less than 1."),
        (
            ["optimizer.gradient_clip_norm=0"],
            "optimizer.gradient_clip_norm=0.0 is out of range. Set more than 0 and up to inf.",
        ),
        (
            ["optimizer=muon", "optimizer.muon_learning_rate=0"],
            "optimizer.muon_learning_rate=0.0 is out of range. Set more than 0, or null.",
        ),
        (
            ["optimizer=muon", "optimizer.muon_momentum=1"],
            "optimizer.muon_momentum=1.0 is out of range. Set 0 or more and less than 1.",
        ),
        (["optimizer.decay_share=0"], "optimizer.decay_share=0.0 is out of range. Set more than 0 and up to 1."),
        (["stage=finetune", "base=x", "optimizer=muon"], "optimizer.algorithm=muon is for whole matrices; LoRA trains"),
        (["optimizer.warmup_steps=-1"], "optimizer.warmup_steps=-1 is out of range. Set 0 or more."),
        (["trainer.max_steps=0"], "trainer.max_steps=0 is out of range. Set 1 or more."),
        (["trainer.num_workers=-1"], "trainer.num_workers=-1 is out of range. Set 0 or more."),
        (["tokenizer.special_tokens=[a,a,'<|pad|>']"], "names one twice. Remove it."),
        (["tokenizer.limit_alphabet=0"], "tokenizer.limit_alphabet=0 is out of range. Set 1 or more, or null."),
        (["tokenizer.vocab_size=100"], "tokenizer.vocab_size=100 is too small"),
        (["tokenizer.special_tokens=[]"], "tokenizer.special_tokens is empty"),
        (["tokenizer.pad_token=x"], "tokenizer.pad_token=x is not one of tokenizer.special_tokens"),
        (["tokenizer.eos_token=x"], "tokenizer.eos_token=x is not one of tokenizer.special_tokens"),
        (["tokenizer.sample_bytes=0"], "tokenizer.sample_bytes=0 is out of range. Set 1 or more, or null."),
        (["tokenizer.ladder=100"], "tokenizer.ladder=100 is smaller than tokenizer.vocab_size=8192"),
        (
            ["tokenizer.morphemes=khaiii"],
            "tokenizer.morphemes: Invalid value 'khaiii', expected one of [none, kiwi, mecab]",
        ),
        (["tokenizer.model=null"], "tokenizer.model is null"),
        (
            ["stage=finetune", "base=x", "lora.dropout=1"],
            "lora.dropout=1.0 is out of range. Set 0 or more and less than 1.",
        ),
        (
            ["stage=finetune", "base=x", "lora.method=dora", "trainer=gpu"],
            "trainer.compile=true is not for lora.method=dora, which torch cannot make one graph of. Set",
        ),
        (
            ["stage=finetune", "base=x", "lora.target_modules=[]"],
            "lora.target_modules is empty. Name layers, or",
        ),
        (["stage=finetune", "base=x", "lora.method=loha"], "lora.method"),
        (
            [*FSDP, "lora.method=qlora"],
            "trainer.strategy=fsdp does not share out a base in 4 bits. Set trainer.strategy=ddp.",
        ),
        (
            [*FSDP, "lora.base_precision=bf16"],
            "trainer.strategy=fsdp shares out weights of one precision, but lora.base_precision=bf16 and",
        ),
        (["stage=finetune", "base=x", "lora.alpha=0"], "lora.alpha=0 is out of range. Set 1 or more."),
        (["experiment=nope"], "experiment=nope is not a choice. Known here: demo"),
        (["experiment=demoo"], "experiment=demoo is not a choice. Did you mean experiment=demo?"),
        (["sweep=nope"], "sweep=nope is not a choice. Known here: learning_rate, search, tokenizers."),
        (["optimizer=null"], "a group cannot be null. Give a choice of it, or leave it out."),
        (["seed=null"], "seed cannot be null. Give it a value, or leave it out."),
        (["+optimizer=adamw"], "optimizer is chosen twice. Write optimizer=<choice> once, without a +."),
        (["learning_rate=1"], "unknown key learning_rate. Did you mean optimizer.learning_rate?"),
        (["hydra.foo=1"], "unknown key hydra.foo."),
        (
            ["~stage"],
            "no stage is chosen. Set stage to one of tokenizer, shards, pretrain, finetune, evaluate, export.",
        ),
        (["~optimizer"], "optimizer is missing. Set optimizer=<value>."),
        (["tokenizer.model.foo=1"], "tokenizer.model.foo is not there yet. Add it with +tokenizer.model.foo=1"),
        (
            ["stage=tokenizer,shards"],
            "stage=tokenizer,shards is a sweep, or a value with a comma. Add -m to sweep, or write "
            """'stage="tokenizer,shards"'.""",
        ),
        (['name="가","나"'], """Add -m to sweep, or write 'name="가,나"'."""),
        (["data.map={question: a b}"], "data.map is not there yet. Add it with '+data.map={question: a b}'"),
        (["name=${oc.env:TTUKTTAK_NOT_SET}"], "Environment variable 'TTUKTTAK_NOT_SET' not found"),
        (["trainer.sample_prompts=3"], "trainer.sample_prompts: Invalid value assigned"),
        (["stage=finetune", "base=x", "lora.rank=0"], "lora.rank=0 is out of range. Set 1 or more."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line_that_names_the_key(overrides, line):
    message = refused(*overrides)
    assert line in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("file", "text", "overrides", "line"),
    [
        (
            "model/gpt2_tiny.yaml",
            "name: gpt2_tiny\narchitecture: gpt2\nnum_layer: 2\n",
            [],
            "conf/model/gpt2_tiny.yaml: unknown key model.num_layer. Did you mean model.num_layers?",
        ),
        (
            "optimizer/mine.yaml",
            "learning_rate: abc\n",
            ["optimizer=mine"],
            "optimizer/mine.yaml: optimizer.learning_rate: Value 'abc' of type 'str' could not be converted to Float",
        ),
        (
            "experiment/mine.yaml",
            "# @package _global_\ntrainr:\n  max_steps: 2\n",
            ["experiment=mine"],
            "experiment/mine.yaml: unknown key trainr. Did you mean trainer?",
        ),
        (
            "experiment/mine.yaml",
            "# @package _global_\ndefaults:\n  - override /modle: gpt2_tiny\n",
            ["experiment=mine"],
            "experiment/mine.yaml: modle is not a group of this stage. Did you mean model?",
        ),
        (
            "experiment/mine.yaml",
            "# @package _global_\ndefaults:\n  - override /model: gpt2_tin\n",
            ["experiment=mine"],
            "model=gpt2_tin is not a choice. Did you mean model=gpt2_tiny?",
        ),
    ],
)
def test_a_mistake_in_a_yaml_names_the_file_and_the_key(file, text, overrides, line, tmp_path):
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / file).write_text(text)
    assert refused(*overrides, conf=tmp_path / "conf") == line


def test_a_yaml_that_cannot_be_read_names_file_and_line(tmp_path):
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "optimizer" / "mine.yaml").write_text("learning_rate: [\n")
    with pytest.raises(YAMLError) as caught:
        config_of("optimizer=mine", conf=tmp_path / "conf")
    place = tmp_path / "conf" / "optimizer" / "mine.yaml"
    assert explain(caught.value) == f"{place}:2: expected the node content, but found '<stream end>'."


def test_a_group_without_a_choice_says_how_to_make_one(tmp_path):
    shutil.copytree(CONF, tmp_path / "conf", ignore=shutil.ignore_patterns("learning_rate.yaml"))
    line = refused("sweep=mine", conf=tmp_path / "conf")
    assert line.startswith("sweep=mine is not a choice. ")


def train(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_aliases_in_conf_itself_are_looked_at_too(tmp_path, monkeypatch):
    lines = ["a0: &a0 [1, 2, 3]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]
    (tmp_path / "mine.yaml").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(aliases, "CONF", tmp_path)
    with pytest.raises(ConfigError, match=r"mine\.yaml: its aliases stand for .* values\. Write out what is meant"):
        aliases.check_aliases(["stage=pretrain"])


@pytest.mark.parametrize(
    ("way", "times"),
    [("--config-dir={}", 9), ("--config-dir {}", 9), ("hydra.searchpath=[file://{}]", 9), ("-cd {}", 1)],
)
def test_aliases_that_stand_for_millions_of_values_are_refused_before_they_are_written_out(tmp_path, way, times):
    (tmp_path / "experiment").mkdir()
    lines = ["# @package _global_", "trainer: &a0 {max_steps: 3}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * times)}]" for n in range(1, times)]
    path = tmp_path / "experiment" / "mine.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = train(*way.format(tmp_path).split(), "experiment=mine", "data=text", "data.path=x", "--cfg=job", cwd=ROOT)
    if times == 1:
        assert made.returncode == 0 and "max_steps: 3" in made.stdout, made.stderr
    else:
        assert made.returncode == 2
        assert made.stderr.startswith(f"error: {path}: its aliases stand for 1")
        assert len(made.stderr.splitlines()) == 1


@pytest.fixture
def elsewhere(tmp_path):
    """A folder beside conf/ that has a choice of data, which is built on one of conf/."""
    (tmp_path / "elsewhere" / "data").mkdir(parents=True)
    mine = tmp_path / "elsewhere" / "data" / "mine.yaml"
    mine.write_text("defaults:\n  - aihub_sns\n  - _self_\nname: mine\ntext_field: 글\n", encoding="utf-8")
    return tmp_path / "elsewhere"


@pytest.mark.parametrize("way", ["hydra.searchpath=[file://{}]", "--config-dir={}"])
@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        (
            ["data=mine"],
            "text_field: 글\n  layout:\n    files: []\n    skip: []\n    format: auto\n    records: data[]\n",
        ),
        (
            ["data=mixture", "data.parts={a: {use: mine}}"],
            "error: data.parts.a.path is missing. Set data.parts.a.path=",
        ),
        (["data=mixture", "data.parts={a: {use: mien}}"], "Did you mean data.parts.a.use=mine?"),
    ],
)
def test_a_choice_of_another_folder_is_one_of_data_and_of_a_part(way, overrides, shown, elsewhere, tmp_path):
    show = [] if "data.parts" in overrides[-1] else ["--cfg", "job"]
    ended = train(way.format(elsewhere), *overrides, *show, cwd=tmp_path)
    assert shown in ended.stdout + ended.stderr


@pytest.mark.parametrize("words", [["--config-path", "conf"], ["-cp", str(CONF)], ["--config-path=conf"]])
def test_another_conf_is_looked_for_beside_train_py(words, tmp_path):
    assert "learning_rate: 0.5" in train(*words, "optimizer.learning_rate=0.5", "--cfg", "job", cwd=tmp_path).stdout


def test_a_choice_of_another_folder_is_one_of_the_jobs_of_a_sweep(elsewhere, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"글 {number}" for number in range(40)), encoding="utf-8")
    (elsewhere / "data" / "mine.yaml").write_text("name: mine\nkind: text\npath: a.txt\nheld_out_share: 0.5\n")
    small = ["stage=tokenizer", "logger=local", "tokenizer=byte_bpe", "data=mine"]
    ended = train("-m", f"--config-dir={elsewhere}", *small, "tokenizer.vocab_size=300,310", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_a_choice_of_another_folder_is_one_of_the_doctor(elsewhere, tmp_path):
    shutil.copytree(CONF, tmp_path / "conf")
    with (tmp_path / "conf" / "config.yaml").open("a", encoding="utf-8") as file:
        file.write(f"  searchpath: [file://{elsewhere}]\n")
    with initialize_config_dir(version_base="1.3", config_dir=str(tmp_path / "conf")):
        mine = data_presets()["mine"]
    assert (mine.name, mine.text_field, mine.layout.records) == ("mine", "글", "data[]")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["optimizer.learning_rat=1"], "unknown key optimizer.learning_rat. Did you mean optimizer.learning_rate?"),
        (["name=a/b"], "name=a/b cannot name a folder. Start with a letter or digit; then letters, digits, '.', "
                       "'_', '+' and '-', 64 in all."),
        (["optimizer=null"], "a group cannot be null. Give a choice of it, or leave it out."),
        (["-m", "modle.num_heads=1,2"], "unknown key modle. Did you mean model?"),
        (["-m", "model.num_heads=4,7"], "model.hidden_size=160 does not divide by model.num_heads=7. "
                                        "Set model.num_heads to a divisor of 160."),
        (["-m", "name=${hydra:job.num}", "optimizer.learning_rate=1e-3,abc"],
         "optimizer.learning_rate: Value 'abc' of type 'str' could not be converted to Float"),
        (["sweep=learning_rate", "seed=-1"], "seed=-1 is out of range. Set 0 or more."),
        (["model.num_layers=1000000"], "model.num_layers=1000000 is out of range. Set 1 or more and up to 1000."),
        *(
            ([word, "-m", "seed=1,2"], f"{word}: no override says which code runs. Leave _target_ out; hydra/launcher "
                                       "and hydra/sweeper are chosen by name.")
            for word in ("hydra.sweeper._target_=os.system", "hydra.launcher={_target_: os.system}")
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_config_is_one_line_and_exit_code_2_with_nothing_written(arguments, line, tmp_path):
    ended = train(*arguments, cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"error: {line}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "word",
    [
        *("hydra.launcher._target_=os.system", "++hydra.sweeper._target_=a,b", "~hydra.sweeper._target_"),
        *("+hydra.callbacks.x._target_=builtins.print", "hydra.callbacks={x: { _target_ : builtins.print}}"),
        *("+_target_=os.system", "+model._target_=os.system", "hydra.sweeper={trials: 3,_target_: os.system}"),
    ],
)
def test_no_override_says_which_code_runs(word):
    with pytest.raises(ConfigError, match=f"^{re.escape(word)}: no override says which code runs"):
        refuse_targets(["seed=1", word])
    refuse_targets(["data.path=my_target_/_target_.txt", "name=_target_s"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sweeper: {_target_: os.system}", "os.system is no launcher or sweeper. Choose hydra/launcher and "
                                           "hydra/sweeper by name."),
        ("callbacks: {x: {_target_: os.system}}", "Target 'os.system' is blocklisted because it allows config data "
                                                  "to control executable behavior or belongs to an "
                                                  "execution-capable target family. It cannot be authorized with "
                                                  "HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE. full_key: hydra.callbacks.x"),
    ],
)  # fmt: skip
def test_a_file_that_names_code_to_run_is_refused_in_one_line(tmp_path, text, line):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(f"# @package _global_\nhydra: {{{text}}}\n")
    ended = train("-m", "--config-dir", str(tmp_path), "sweep=mine", "seed=1,2", cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"error: {line}\n")


def test_the_values_of_a_sweep_can_be_typed_as_a_dict(tmp_path):
    ended = train("-m", "+hydra.sweeper.params={seed: '-1,-2'}", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (2, "error: seed=-1 is out of range. Set 0 or more.\n")


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


def test_the_other_jobs_of_a_sweep_go_on_and_its_end_names_what_failed(tmp_path):
    for name in "ac":
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name} {number}" for number in range(40)))
    small = [
        "stage=tokenizer",
        "logger=local",
        "tokenizer=byte_bpe",
        "tokenizer.vocab_size=300",
        "data=text",
        "data.held_out_share=0.5",
    ]
    ended = train("-m", *small, "data.path=a.txt,b.txt,c.txt", "name=${hydra:job.num}", cwd=tmp_path)
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert [error.split(":")[1] for error in errors] == [" data.path=b.txt"]
    assert ended.returncode == 3  # a part of the jobs
    assert sorted(path.parent.name[:2] for path in tmp_path.glob("outputs/tokenizer/*/run.json")) == ["0-", "2-"]


def test_help_lists_groups_settings_and_examples(tmp_path):
    shown = train("--help", cwd=tmp_path).stdout
    for line in ("optimizer: adamw, adamw_full, adamw_lora, muon", "  learning_rate: 0.001"):
        assert f"\n{line}" in shown
    groups = shown.partition("== Choices (group=option) ==")[2].partition("== Settings")[0]
    assert re.findall(r"^(\w+):", groups, re.MULTILINE) == sorted([*GROUPS, "stage", "experiment", "sweep"])
    readme = re.findall(r"^python train\.py .*", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"^  (python train\.py .*)", shown, re.MULTILINE)[:3] == readme[:3]
    assert shown.index(readme[2]) < 900


# What is typed -> the text that it sets: what Hydra's grammar cannot read is taken as text.
TEXTS = {
    "data[].form": "data[].form",
    "내용": "내용",
    "내용[].글": "내용[].글",
    "고객질문(요청)|상담사": "고객질문(요청)|상담사",
    '"data[].form"': "data[].form",
    "본문 내용": "본문 내용",
    "plain.path": "plain.path",
}


@pytest.mark.parametrize(("typed", "text"), TEXTS.items())
def test_a_text_that_hydra_cannot_read_needs_no_quotes(typed, text):
    assert composed(["data=text", "data.path=x", f"data.text_field={typed}"])["data"]["text_field"] == text


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("data.layout.files=[가.json,나 다.json]", ["가.json", "나 다.json"]),
        ("+data.layout.roles={gpt: 상담사}", {"gpt": "상담사"}),
        ("data.layout.header=false", False),
    ],
)
def test_a_list_and_a_dict_of_such_texts_stay_what_they_are(typed, value):
    key = typed.partition("=")[0].lstrip("+").rpartition(".")[2]
    assert composed(["data=text", "data.path=x", typed])["data"]["layout"][key] == value


def test_what_can_be_read_stays_as_it_is_typed():
    words = ["-m", "--cfg", "lr=1e-3,3e-4", "a=[b,{c: d}]", "a=x y", "a=[b,", "a=${b}", "~a", "a=", "a='한'", "가=1"]
    assert list(map(readable, words)) == words


@pytest.mark.parametrize(
    "text",
    ["내용", "1", "1.0", "null", "data[].form", "본문 내용", "a,b", 'say "x"', "it's", "C:\\글\\", "{a}", "*$HOME"],
)
def test_what_is_to_be_pasted_sets_this_very_text(text):
    said = subprocess.run(["bash", "-c", f"printf %s {to_paste('name', text)}"], capture_output=True, text=True)
    override = OverridesParser.create().parse_overrides([said.stdout])[0]
    assert override.key_or_group == "name"
    value = override.value()
    assert (value.text if isinstance(value, QuotedString) else value) == text


def test_a_path_and_a_name_in_hangul_are_typed_as_they_are_and_swept(tmp_path):
    for name in ("글.txt", "책.txt"):
        (tmp_path / name).write_text("\n\n".join(f"{name} {n}" for n in range(40)), encoding="utf-8")
    small = ["stage=tokenizer", "tokenizer.vocab_size=2700", "data=text", "data.held_out_share=0.5"]
    ended = train("-m", *small, "data.path=글.txt,책.txt", "name=실험-${hydra:job.num}", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    records = [path.read_text(encoding="utf-8") for path in tmp_path.glob("outputs/*/*/run.json")]
    names = sorted(json.loads(record)["name"] for record in records)
    assert names == ["실험-0", "실험-1"]


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
        ("run", ["stage=export"]),
    ],
)
def test_a_path_may_begin_with_the_home_folder(monkeypatch, key, others):
    monkeypatch.setenv("HOME", "/home/나")
    found = config_of(*others, readable(f"{key}=~/글"))
    for part in key.split("."):
        found = getattr(found, part)
    assert found == "/home/나/글"


def test_text_in_the_home_folder_is_read(tmp_path):
    (tmp_path / "글.txt").write_text("\n\n".join(f"글 {n}" for n in range(40)), encoding="utf-8")
    parts = "data.parts={a: {use: text, path: '~/글.txt'}}"
    typed = ["stage=tokenizer", "tokenizer.vocab_size=2700", "data=mixture", parts, "data.held_out_share=0.5"]
    ended = train(*typed, "outputs=~/out", cwd=tmp_path, HOME=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.glob("out/tokenizer/*/tokenizer.json"))


def test_completion_of_a_group_answers_with_its_choices(tmp_path):
    line = "train.py optimizer=adam"
    ended = train("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert ended.stdout.split() == ["optimizer=adamw", "optimizer=adamw_full", "optimizer=adamw_lora"]
    assert "complete" in train("-sc", "install=bash", cwd=tmp_path).stdout


def test_composing_costs_at_most_three_times_the_import_of_hydra(tmp_path):
    def seconds(*command):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    compose_job, import_hydra = (
        min(seconds(*command) for _ in range(3))
        for command in ([str(ROOT / "train.py"), "--cfg", "job"], ["-c", "import hydra"])
    )
    assert compose_job <= 3 * import_hydra


@pytest.mark.parametrize(
    "override",
    [
        *("name=other", "outputs=elsewhere", "trainer.devices=2", "trainer.log_every_steps=1", "logger.mode=disabled"),
        *("data.num_workers=1", "trainer.micro_batch_size=4"),
    ],
)
def test_how_a_run_is_carried_out_is_not_its_identity(override):
    assert identity_settings(config_of(override)) == identity_settings(config_of())


TUNING = ("stage=finetune", "base=x")


@pytest.mark.parametrize(
    ("choice", "unused", "said"),
    [
        (["optimizer.algorithm=adamw"], "optimizer.muon_learning_rate=0.001", "optimizer.algorithm=adamw"),
        (["optimizer.algorithm=adamw"], "optimizer.muon_momentum=0.9", "optimizer.algorithm=adamw"),
        (["optimizer.schedule=cosine"], "optimizer.decay_share=0.1", "optimizer.schedule=cosine"),
        (["optimizer.schedule=linear"], "optimizer.decay_shape=linear", "optimizer.schedule=linear"),
        (["optimizer.schedule=constant"], "optimizer.min_learning_rate_ratio=0.0", "optimizer.schedule=constant"),
        ([*TUNING, "lora.method=full"], "lora.rank=16", "lora.method=full"),
        ([*TUNING, "lora.method=qlora"], "lora.base_precision=bf16", "lora.method=qlora"),
        ([*TUNING, "lora.method=pissa"], "lora.base_precision=bf16", "lora.method=pissa"),
    ],
)
def test_what_a_choice_does_not_use_is_left_out_of_the_run_and_it_is_said(choice, unused, said, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("llm"), "propagate", True)
    fields._say_once.cache_clear()
    with_it, without = config_of(*choice, unused), config_of(*choice)
    assert with_it == without and identity_settings(with_it) == identity_settings(without)
    assert caplog.messages == [f"{unused} is not used with {said}, and is left out"]


def test_a_batch_in_tokens_is_the_batch_in_rows_that_has_them():
    in_tokens, in_rows = config_of("data.batch_tokens=4096"), config_of("data.batch_size=16")
    assert in_tokens.data.batch_size == 16
    assert identity_settings(in_tokens) == identity_settings(in_rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["experiment=mine", "data.batch_size=8"],
            "data.batch_size=8 is not used: it is computed from data.batch_toke",
        ),
        (
            ["experiment=mine", "trainer.max_steps=9"],
            "9 is not used: it is computed from trainer.max_bytes=7000. Set t",
        ),
        (
            ["sweep=tokenizers", "trainer.max_steps=9"],
            "max_bytes=3000000. Set trainer.max_bytes=null, or leave trainer",
        ),
        (
            ["-m", "seed=1,2", "data.batch_size=8", "data.batch_tokens=4096"],
            "computed from data.batch_tokens=4096. Set",
        ),
        (["-m", "trainer.max_steps=9,8", "trainer.max_flops=1e9"], "is computed from trainer.max_flops=1000000000.0. "),
    ],
)
def test_what_is_typed_is_not_computed_from_something_else_in_silence(overrides, message, tmp_path):
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text("# @package _global_\ndata: {batch_tokens: 4096}\ntrainer: {max_bytes: 7000}\n", encoding="utf-8")
    ended = train("--config-dir", str(tmp_path), *overrides, f"outputs={tmp_path / 'outputs'}", cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert not (tmp_path / "outputs" / "tokenizer").exists()


@pytest.mark.parametrize(
    "overrides", [["data.batch_size=8", "data.batch_tokens=null"], ["trainer.max_steps=9", "trainer.max_bytes=null"]]
)
def test_what_is_typed_is_used_where_what_it_would_be_computed_from_is_null(overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        refuse_computed(compose("config", ["sweep=tokenizers", *overrides]), overrides)


def test_how_devices_share_the_work_is_not_its_identity():
    several = config_of("trainer.devices=2", "trainer.num_nodes=2", "trainer.strategy=fsdp")
    assert several.trainer.world_size == 4
    assert identity_settings(several) == identity_settings(config_of())


@pytest.mark.parametrize(
    "override",
    ["seed=1", "optimizer.learning_rate=1", "data.batch_size=2", "model.num_layers=1", "data.packing=padded"],
)
def test_what_changes_the_weights_is_part_of_the_identity(override):
    assert identity_settings(config_of(override)) != identity_settings(config_of())


@pytest.mark.parametrize("override", ["tokenizer.allow_lossy=true", "tokenizer.ladder=9000"])
def test_how_a_tokenizer_is_made_is_not_its_identity(override):
    settings = [identity_settings(config_of("stage=tokenizer", *more)) for more in ([], [override])]
    assert settings[0] == settings[1]


@pytest.mark.parametrize(
    "override", ["tokenizer.sample_bytes=9", "tokenizer.sample_seed=1", "tokenizer.bos_token='<unk>'"]
)
def test_what_a_tokenizer_learns_from_and_its_roles_are_its_identity(override):
    settings = [identity_settings(config_of("stage=tokenizer", *more)) for more in ([], [override])]
    assert settings[0] != settings[1]


def test_rows_are_no_part_of_a_tokenizers_identity():
    settings = [
        identity_settings(config_of("stage=tokenizer", override))
        for override in ("data.sequence_length=8", "data.sequence_length=9")
    ]
    assert settings[0] == settings[1]
    shards = [identity_settings(config_of("stage=shards", f"data.packing={p}")) for p in ("padded", "best_fit")]
    assert shards[0] == shards[1]
    assert settings[0]["tokenizer"]["initial_alphabet"] == Alphabet.ks_x_1001.name


@dataclass(kw_only=True, slots=True)
class Toppings:
    amount: int = setting(3, at_least=1, at_most=9)


@dataclass(kw_only=True, slots=True)
class Toy:
    """What a group of settings needs: its fields. Nothing else in the code knows of them."""

    share: float = setting(0.5, above=0, below=1)
    rate: float | None = setting(None, ROWS, at_least=0)
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


def test_a_setting_has_its_default_each_config_its_own():
    assert (toy().share, toy().rate, toy().toppings.amount) == (0.5, None, 3)
    changed = Toy()
    changed.names.append("b")
    changed.toppings.amount = 4
    assert (Toy().names, Toy().toppings) == (["a"], Toppings())


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


def test_the_ends_of_a_range_that_are_in_it_are_taken(monkeypatch):
    monkeypatch.setenv("HOME", "/home/나")
    made = toy(rate=0, cap="inf", later=1, toppings={"amount": 9}, folder="~/글")
    assert (made.rate, made.cap, made.later, made.toppings.amount) == (0, float("inf"), 1, 9)
    assert made.folder == "/home/나/글"


def test_a_setting_is_in_the_identity_unless_it_says_otherwise():
    everywhere = {"share": 0.5, "cap": 1.0, "names": ["a"], "toppings": {"amount": 3}}
    assert identity_settings(toy(label="b", folder="x"), without=(ROWS,)) == everywhere
    assert identity_settings(toy()) == {**everywhere, "rate": None}
    assert identity_settings(toy(later=1), without=(ROWS,)) == {**everywhere, "later": 1}


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


@pytest.mark.parametrize("command", commands_of_the_docs())
def test_a_command_of_the_docs_passes_the_schema(command):
    words = [word for word in shlex.split(command, comments=True)[2:] if word != "-m"]
    config_of(*map(first_value, OverridesParser.create().parse_overrides(words)))


def test_the_docs_have_commands():
    assert len(commands_of_the_docs()) > 10
