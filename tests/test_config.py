"""Every file in conf/ composes, and what cannot be composed or go together is one line that names the key."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from llm.config import STAGES, Alphabet, from_hydra, identity_settings
from llm.config.explain import explain
from llm.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
GROUPS = ("tokenizer", "data", "model", "optimizer", "trainer", "logger")
STAGE_OF = {"korean_law_qa": "finetune", "conversations": "finetune", "adamw_lora": "finetune"}


def config_of(*overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return from_hydra(compose("config", list(overrides)))


def refused(*overrides):
    """The one line that these overrides give."""
    with pytest.raises((ConfigError, HydraException)) as caught:
        config_of(*overrides)
    return str(caught.value) if isinstance(caught.value, ConfigError) else explain(caught.value)


def choices(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("override", [f"{group}={choice}" for group in GROUPS for choice in choices(group)])
def test_every_choice_composes_in_a_stage_that_uses_it(override):
    choice = override.split("=")[1]
    stage = STAGE_OF.get(choice, "pretrain")
    needed = ["base=x"] if stage == "finetune" else []
    needed += ["data.path=x"] if choice in ("text", "conversations") else []
    assert config_of(f"stage={stage}", override, *needed).stage == stage


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
    modules = sorted(path.stem for path in (ROOT / "llm" / "stage").glob("[!_]*.py"))
    assert sorted(STAGES) == choices("stage") == modules


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["optimizer.learning_rat=1"], "unknown key optimizer.learning_rat. Did you mean optimizer.learning_rate?"),
        (["+optimizer.learning_rat=1"], "unknown key optimizer.learning_rat. Did you mean optimizer.learning_rate?"),
        (["+optimizer.x=1"], "unknown key optimizer.x. Known here: learning_rate"),
        (["modle=a"], "unknown key modle. Did you mean model?"),
        (["trainer.max_steps=abc"], "trainer.max_steps: Value 'abc' of type 'str' could not be converted to Integer"),
        (["trainer.precision=fp16"], "trainer.precision: Invalid value 'fp16', expected one of [fp32, bf16]"),
        (["model=gpt3_tiny"], "model=gpt3_tiny is not a choice. Did you mean model=gpt2_tiny?"),
        (["stage=pretrin"], "stage=pretrin is not a choice. Did you mean stage=pretrain?"),
        (["stage=finetune"], "base is missing. Set base="),
        (["stage=tokenizer", "trainer.max_steps=3"], "trainer is not part of stage=tokenizer"),
        (["stage=tokenizer", "model=gpt2_tiny"], "model is not a group of this stage. It belongs to stage=pretrain"),
        (["a=b=c["], "cannot read the override 'a=b=c['"),
        (["name=${foo}"], "name: Interpolation key 'foo' not found"),
        (["name=a/b"], "name='a/b' cannot name a folder"),
        (["data=korean_law_qa"], "data=korean_law_qa is conversations, but stage=pretrain learns from text"),
        (["stage=finetune", "base=x", "data=korean_law"], "data=korean_law is text, but stage=finetune learns from"),
        (["data=text"], "data.path is missing. Set data.path=<file, folder or glob of txt or jsonl>"),
        (["data.path=x"], "data.path=x is not used by data=korean_law"),
        (["data.held_out_share=1"], "data.held_out_share=1.0 is out of range"),
        (["data.batch_size=0"], "data.batch_size=0 is too small"),
        (["data.batch_size=3", "trainer.devices=2"], "data.batch_size=3 does not divide by trainer.devices=2"),
        (["data.batch_size=8", "trainer.micro_batch_size=3"], "divide by trainer.micro_batch_size=3"),
        (
            ["model.max_position_embeddings=100"],
            "data.sequence_length=256 is longer than model.max_position",
        ),
        (["model.num_heads=7"], "model.hidden_size=160 does not divide by model.num_heads=7"),
        (["model=llama_tiny", "model.hidden_size=12"], "rotary positions need an even one"),
        (["model=llama_tiny", "model.num_key_value_heads=3"], "model.num_heads=4 does not divide by"),
        (["model.num_key_value_heads=2"], "model.num_key_value_heads is a setting of llama"),
        (["model.dropout=1"], "model.dropout=1.0 is out of range"),
        (["optimizer.learning_rate=-1"], "optimizer.learning_rate=-1.0 must be a number above 0"),
        (["optimizer.learning_rate=nan"], "optimizer.learning_rate=nan must be a number above 0"),
        (["tokenizer.vocab_size=100"], "tokenizer.vocab_size=100 is too small"),
        (["tokenizer.special_tokens=[]"], "tokenizer.special_tokens is empty"),
        (["tokenizer.pad_token=x"], "tokenizer.pad_token=x is not one of tokenizer.special_tokens"),
        (["tokenizer.model=null"], "tokenizer.model is null"),
        (["stage=finetune", "base=x", "lora.rank=0"], "lora.rank=0 is too small"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line_that_names_the_key(overrides, line):
    message = refused(*overrides)
    assert line in message
    assert "\n" not in message


def test_a_typo_in_a_yaml_names_the_file(tmp_path):
    import shutil

    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "model" / "gpt2_tiny.yaml").write_text("name: gpt2_tiny\narchitecture: gpt2\nnum_layer: 2\n")
    with (
        initialize_config_dir(version_base="1.3", config_dir=str(tmp_path / "conf")),
        pytest.raises(HydraException) as caught,
    ):
        compose("config")
    line = "conf/model/gpt2_tiny.yaml: unknown key model.num_layer. Did you mean model.num_layers?"
    assert explain(caught.value) == line


@pytest.mark.parametrize("flags", [[], ["-m"]], ids=["run", "multirun"])
def test_a_wrong_key_ends_in_one_line_and_exit_code_2_with_nothing_written(flags, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *flags, "optimizer.learning_rat=1", f"outputs={tmp_path}/out"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.stderr == "error: unknown key optimizer.learning_rat. Did you mean optimizer.learning_rate?\n"
    assert (ended.returncode, ended.stdout) == (2, "")
    assert not flags or not list(tmp_path.rglob("run.json"))
    assert flags or not list(tmp_path.iterdir())


def test_hydra_full_error_shows_the_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "optimizer.learning_rat=1"]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"HYDRA_FULL_ERROR": "1", "PATH": "/usr/bin"}
    )
    assert "Traceback" in ended.stderr


@pytest.mark.parametrize(
    "override",
    ["name=other", "outputs=elsewhere", "trainer.devices=2", "trainer.log_every_steps=1", "logger.mode=disabled"],
)
def test_how_a_run_is_carried_out_is_not_its_identity(override):
    assert identity_settings(config_of(override), "pretrain") == identity_settings(config_of(), "pretrain")


@pytest.mark.parametrize("override", ["seed=1", "optimizer.learning_rate=1", "data.batch_size=2", "model.num_layers=1"])
def test_what_changes_the_weights_is_part_of_the_identity(override):
    assert identity_settings(config_of(override), "pretrain") != identity_settings(config_of(), "pretrain")


def test_rows_are_no_part_of_a_tokenizers_identity():
    settings = [
        identity_settings(config_of("stage=tokenizer", override), "tokenizer")
        for override in ("data.sequence_length=8", "data.sequence_length=9")
    ]
    assert settings[0] == settings[1]
    assert settings[0]["tokenizer"]["initial_alphabet"] == Alphabet.ks_x_1001.name
