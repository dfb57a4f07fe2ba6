"""The schema of conf/: one dataclass for each stage, with the checks across its groups."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from llm.config.data import DataConfig, DataKind
from llm.config.evaluation import EvaluationConfig
from llm.config.export import ExportConfig
from llm.config.fields import (
    CHAT,
    HOW,
    LENGTH,
    ROWS,
    SHARES,
    SHARES_OF_TOKENS,
    TEXT,
    check_settings,
    public_texts,
    setting,
)
from llm.config.tokenizer import TokenizerConfig
from llm.config.training import (
    BUDGETS,
    Algorithm,
    LoggerConfig,
    ModelConfig,
    OptimizerConfig,
    Strategy,
    TrainerConfig,
)
from llm.config.tuning import LoraConfig, Method, WeightPrecision
from llm.credentials import secret_in
from llm.errors import ConfigError

Schema = TypeVar("Schema", bound="StageConfig")


class Reuse(Enum):
    auto = "auto"  # return a finished run, resume an unfinished one, else make it
    never = "never"  # make it again, from the beginning
    require = "require"  # return a finished run, else refuse


STAGES: dict[str, type["StageConfig"]] = {}
MODEL_STAGES: list[str] = []  # whose runs have a model; where a name stands for several, the first one here is meant


def stage(name: str, *, has_model: bool = False) -> Callable[[type[Schema]], type[Schema]]:
    """Make a dataclass the schema of a stage; its module is llm/stage/<name>.py, its choice conf/stage/<name>.yaml."""

    def register(schema: type[Schema]) -> type[Schema]:
        STAGES[name] = schema
        ConfigStore.instance().store(name=f"schema_{name}", node=schema)  # in no group, which --help would show
        if has_model:
            MODEL_STAGES.insert(0, name)
        return schema

    return register


def _no_folder(name: str) -> str | None:
    if re.fullmatch(r"\w[\w.+-]{0,63}", name):
        return None
    return "cannot name a folder. Start with a letter or digit; then letters, digits, '.', '_', '+' and '-', 64 in all."


@dataclass(kw_only=True, slots=True)
class StageConfig:
    """What every stage has."""

    stage: str = MISSING
    name: str | None = setting(None, HOW, fault=_no_folder, is_public=True)  # None: made from the choices
    outputs: str = setting("outputs", HOW, is_file=True)
    reuse: Reuse = setting(Reuse.auto, HOW)
    dry_run: bool = setting(False, HOW)  # say what it would take and what is there, and make nothing

    def __post_init__(self) -> None:
        check_settings(self)
        _refuse_secrets(self)


@stage("tokenizer")
@dataclass(kw_only=True, slots=True)
class TokenizerStage(StageConfig):
    tokenizer: TokenizerConfig = MISSING
    data: DataConfig = setting(MISSING, without=(ROWS, LENGTH, CHAT, SHARES_OF_TOKENS))
    logger: LoggerConfig | None = setting(None, HOW)  # None: made on the way of another stage

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        _needs_text(self)


@stage("shards")
@dataclass(kw_only=True, slots=True)
class ShardsStage(StageConfig):
    tokenizer: TokenizerConfig = setting(MISSING, HOW)  # the tokenizer's digest is in the identity
    data: DataConfig = setting(MISSING, without=(ROWS, LENGTH, CHAT))
    logger: LoggerConfig | None = setting(None, HOW)  # None: made on the way of another stage

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        _needs_text(self)


@stage("pretrain", has_model=True)
@dataclass(kw_only=True, slots=True)
class PretrainStage(StageConfig):
    seed: int = setting(0, at_least=0)
    tokenizer: TokenizerConfig = setting(MISSING, HOW)  # the shards' digest is in the identity
    data: DataConfig = setting(MISSING, without=(TEXT, CHAT))  # the text is that of its shards
    model: ModelConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = setting(MISSING, HOW)

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        _needs_text(self)
        _needs_equal_shares(self.data, self.trainer)
        is_read = self.model.architecture is not None  # of a path it is known once the stage has read it
        if is_read and self.data.sequence_length > self.model.max_position_embeddings:
            raise ConfigError(
                f"data.sequence_length={self.data.sequence_length} is longer than model.max_position_embeddings="
                f"{self.model.max_position_embeddings}. Lower the first or raise the second."
            )


@stage("finetune", has_model=True)
@dataclass(kw_only=True, slots=True)
class FinetuneStage(StageConfig):
    base: str = setting(MISSING, HOW, is_file=True)  # a pretraining run: its name or folder; its digest is identity
    seed: int = setting(0, at_least=0)
    chat_template: str | None = setting(None, HOW, is_file=True)  # None: the base's; its text is in the identity
    data: DataConfig = setting(MISSING, without=(SHARES, SHARES_OF_TOKENS))
    lora: LoraConfig = setting(LoraConfig())
    optimizer: OptimizerConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = setting(MISSING, HOW)

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        if self.data.kind is not DataKind.conversations:
            raise ConfigError(
                f"data={self.data.name} is {self.data.kind.value}, but stage=finetune learns from conversations. "
                "Choose data=conversations or data=korean_law_qa."
            )
        for key in BUDGETS:
            if getattr(self.trainer, key) is not None:
                raise ConfigError(f"trainer.{key} is a budget of stage=pretrain. Set trainer.max_steps in its place.")
        if self.optimizer.algorithm is Algorithm.muon and self.lora.method is not Method.full:
            raise ConfigError(
                "optimizer.algorithm=muon is for whole matrices; LoRA trains thin factors of them. Choose "
                "optimizer=adamw_lora, or lora.method=full."
            )
        _needs_equal_shares(self.data, self.trainer)
        if self.trainer.compile and self.lora.method is Method.dora:  # PEFT looks at the type of weights as it runs
            raise ConfigError(
                "trainer.compile=true is not for lora.method=dora, which torch cannot make one graph of. Set "
                "trainer.compile=false, or another method."
            )
        if self.trainer.strategy is Strategy.fsdp:
            _needs_one_precision(self.lora)


@stage("evaluate")
@dataclass(kw_only=True, slots=True)
class EvaluateStage(StageConfig):
    run: str = setting(MISSING, HOW, is_file=True)  # a run, a folder or a hub id; its digest is in the identity
    # whose held-out side is measured; None: what the run itself held out
    data: DataConfig | None = setting(None, without=(ROWS, SHARES, SHARES_OF_TOKENS))
    seed: int = setting(0, at_least=0)  # of the held-out sentences that are taken, their changes, and what is written
    evaluation: EvaluationConfig = setting(EvaluationConfig())
    logger: LoggerConfig = setting(MISSING, HOW)


@stage("export")
@dataclass(kw_only=True, slots=True)
class ExportStage(StageConfig):
    run: str = setting(MISSING, HOW, is_file=True)  # pretrained or tuned: its name or folder; its digest is identity
    export: ExportConfig = setting(ExportConfig())
    logger: LoggerConfig | None = setting(None, HOW)


def _refuse_secrets(config: StageConfig) -> None:
    """Neither what a run is called nor what decides its key can be masked; all else is, where it is kept."""
    for key, text in public_texts(config):
        if held := secret_in(text):
            raise ConfigError(f"{key} holds {held}, and would be written down as it is. Set {key} to something else.")


def _needs_text(config: Any) -> None:
    if config.data.kind is not DataKind.text:
        raise ConfigError(
            f"data={config.data.name} is {config.data.kind.value}, but stage={config.stage} learns from text. "
            "Choose data=text or data=korean_law."
        )


def _needs_one_precision(lora: LoraConfig) -> None:
    """A block is put together as one tensor, of one type."""
    if lora.method is Method.qlora:
        raise ConfigError("trainer.strategy=fsdp does not share out a base in 4 bits. Set trainer.strategy=ddp.")
    if (lora.base_precision is WeightPrecision.bf16) != (lora.precision is WeightPrecision.bf16):
        raise ConfigError(
            "trainer.strategy=fsdp shares out weights of one precision, but lora.base_precision="
            f"{lora.base_precision.name} and lora.precision={lora.precision.name}. Make them equal, or set "
            "trainer.strategy=ddp."
        )


def _needs_equal_shares(data: DataConfig, trainer: TrainerConfig) -> None:
    rows, rest = divmod(data.batch_size, trainer.world_size)
    over = f"data.batch_size={data.batch_size} over trainer.devices={trainer.devices}"
    if trainer.num_nodes > 1:
        over += f" on trainer.num_nodes={trainer.num_nodes}"
    if not rows:
        raise ConfigError(f"{over} leaves some without a row. Set data.batch_size={trainer.world_size} or more.")
    if rest:
        raise ConfigError(
            f"{over} gives unequal shares. Set data.batch_size={data.batch_size - rest} or "
            f"{data.batch_size - rest + trainer.world_size}, or other devices."
        )
    if trainer.micro_batch_size is not None and rows % trainer.micro_batch_size:
        raise ConfigError(
            f"{over} gives {rows} rows, which do not divide by trainer.micro_batch_size={trainer.micro_batch_size}. "
            f"Set it to a divisor of {rows}."
        )
