"""The schema of conf/: one dataclass for each stage, with the checks across its groups."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from llm.config.data import DataConfig, DataKind
from llm.config.evaluation import EvaluationConfig, ExportConfig
from llm.config.fields import HOW, check_settings, divides, setting, unmasked_texts
from llm.config.tokenizer import TokenizerConfig
from llm.config.training import (
    BUDGETS,
    OF_ADAPTERS,
    Algorithm,
    LoggerConfig,
    ModelConfig,
    OptimizerConfig,
    Strategy,
    Trainable,
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
    name: str | None = setting(None, HOW, fault=_no_folder)  # None: made from the choices
    outputs: str = setting("outputs", HOW, is_file=True)
    reuse: Reuse = setting(Reuse.auto, HOW)
    dry_run: bool = setting(False, HOW)  # say what it would take and what is there, and make nothing

    def __post_init__(self) -> None:
        check_settings(self)
        for key, text in unmasked_texts(self):
            if held := secret_in(text):
                raise ConfigError(
                    f"{key} holds {held}, and would be written down as it is. Set {key} to something else."
                )


@stage("documents")
@dataclass(kw_only=True, slots=True)
class DocumentsStage(StageConfig):
    data: DataConfig = MISSING
    logger: LoggerConfig | None = setting(None, HOW)  # None: made on the way of another stage

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        _needs(DataKind.text, self.data, self.stage)
        if self.data.is_mixture:
            raise ConfigError("data=mixture has documents for each of its parts. Choose the data of one of them.")


@stage("tokenizer")
@dataclass(kw_only=True, slots=True)
class TokenizerStage(StageConfig):
    tokenizer: TokenizerConfig = MISSING  # the digest of its documents is in the identity
    data: DataConfig = MISSING
    logger: LoggerConfig | None = setting(None, HOW)  # None: made on the way of another stage

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        _needs(DataKind.text, self.data, self.stage)


@stage("shards")
@dataclass(kw_only=True, slots=True)
class ShardsStage(StageConfig):
    tokenizer: TokenizerConfig = setting(MISSING, HOW)  # the tokenizer's digest is in the identity
    data: DataConfig = MISSING
    logger: LoggerConfig | None = setting(None, HOW)  # None: made on the way of another stage

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        _needs(DataKind.text, self.data, self.stage)


@stage("pretrain", has_model=True)
@dataclass(kw_only=True, slots=True)
class PretrainStage(StageConfig):
    seed: int = setting(0, at_least=0)
    tokenizer: TokenizerConfig = setting(MISSING, HOW)  # the shards' digest is in the identity
    data: DataConfig = MISSING
    model: ModelConfig = MISSING
    lora: LoraConfig | None = setting(LoraConfig(), only_where_set=True)  # None: no adapters are trained
    optimizer: OptimizerConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = setting(MISSING, HOW)

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        _needs(DataKind.text, self.data, self.stage)
        _share_out(self.data, self.trainer)
        if self.tokenizer.new_tokens is not None and self.model.path is not None:
            self.model = replace(self.model, resize_vocabulary=True)
        self._check_trainable()
        is_read = self.model.architecture is not None  # of a path it is known once the stage has read it
        if is_read and self.data.sequence_length > self.model.max_position_embeddings:
            size = self.data.sequence_bytes
            raise ConfigError(
                f"data.sequence_length={self.data.sequence_length} is longer than model.max_position_embeddings="
                f"{self.model.max_position_embeddings}. Lower "
                f"{'the first' if size is None else f'data.sequence_bytes={size}'} or raise the second."
            )

    def _check_trainable(self) -> None:
        """Have `lora` be there for adapters alone, and refuse what a part of a model cannot do."""
        trainable, has_adapters = self.model.trainable, self.model.trainable in OF_ADAPTERS
        if not has_adapters and self.lora not in (None, LoraConfig()):
            raise ConfigError(
                "lora is for adapters, and none are trained. Set model.path and model.trainable=lora, or leave it out."
            )
        self.lora = (self.lora or LoraConfig()) if has_adapters else None
        is_resized = self.model.resize_vocabulary
        if trainable is Trainable.new_rows and not is_resized:
            raise ConfigError(
                "model.trainable=new_rows: the tokenizer is the model's own and has no new tokens. Set "
                "tokenizer=extend, or model.trainable=embeddings."
            )
        rate = self.optimizer.embedding_learning_rate
        if rate is not None and trainable is Trainable.lora and not is_resized:
            raise ConfigError(
                f"optimizer.embedding_learning_rate={rate} is of no use: model.trainable=lora trains no embeddings "
                "without new tokens. Set model.trainable=lora_embeddings, or tokenizer=extend."
            )
        if trainable is None:
            return
        typed = f"model.trainable={trainable.name}"
        if self.optimizer.algorithm is Algorithm.muon:
            raise ConfigError(f"optimizer.algorithm=muon is for whole models, not for {typed}. Set it to adamw.")
        if self.trainer.strategy is Strategy.fsdp:
            raise ConfigError(f"trainer.strategy=fsdp is for whole models, not for {typed}. Set it to ddp.")
        if self.model.pad_vocab_to_multiple_of is not None:
            raise ConfigError(f"model.pad_vocab_to_multiple_of is for whole models, not for {typed}. Leave it out.")
        if self.lora is None:
            return
        if self.lora.method in (Method.full, Method.qlora):
            way = "model.trainable=all" if self.lora.method is Method.full else "lora.method=lora"
            raise ConfigError(f"lora.method={self.lora.method.name} is for stage=finetune. Set {way}.")
        if self.trainer.compile and self.lora.method is Method.dora:
            raise ConfigError("trainer.compile=true is not for lora.method=dora. Set trainer.compile=false.")
        if self.lora.base_precision is WeightPrecision.bf16 and trainable is Trainable.lora_embeddings:
            raise ConfigError(
                "lora.base_precision=bf16 is for weights that are not trained, but model.trainable=lora_embeddings "
                "trains some of them. Set model.trainable=lora, or lora.base_precision=fp32."
            )


@stage("finetune", has_model=True)
@dataclass(kw_only=True, slots=True)
class FinetuneStage(StageConfig):
    base: str = setting(MISSING, HOW, is_file=True)  # a pretraining run: its name or folder; its digest is identity
    seed: int = setting(0, at_least=0)
    chat_template: str | None = setting(None, HOW, is_file=True)  # None: the base's; its text is in the identity
    data: DataConfig = MISSING
    lora: LoraConfig = setting(LoraConfig())
    optimizer: OptimizerConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = setting(MISSING, HOW)

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        _needs(DataKind.conversations, self.data, self.stage)
        _share_out(self.data, self.trainer)
        for key in BUDGETS:
            if getattr(self.trainer, key) is not None:
                raise ConfigError(f"trainer.{key} is a budget of stage=pretrain. Set trainer.max_steps in its place.")
        method, trainer = self.lora.method, self.trainer
        if self.optimizer.algorithm is Algorithm.muon and method is not Method.full:
            raise ConfigError("optimizer.algorithm=muon is for whole matrices. Set it to adamw, or lora.method=full.")
        if trainer.compile and method is Method.dora:  # PEFT looks at the type of weights as it runs
            raise ConfigError("trainer.compile=true is not for lora.method=dora. Set trainer.compile=false.")
        is_mixed = (self.lora.base_precision is WeightPrecision.bf16) != (self.lora.precision is WeightPrecision.bf16)
        if trainer.strategy is Strategy.fsdp and (is_mixed or method is Method.qlora):
            raise ConfigError(  # a block is put together as one tensor, of one type
                f"trainer.strategy=fsdp shares out weights of one precision, but lora.method={method.value}, "
                f"lora.base_precision={self.lora.base_precision.name} and lora.precision={self.lora.precision.name}. "
                "Set trainer.strategy=ddp."
            )


@stage("evaluate")
@dataclass(kw_only=True, slots=True)
class EvaluateStage(StageConfig):
    run: str = setting(MISSING, HOW, is_file=True)  # a run, a folder or a hub id; its digest is in the identity
    data: DataConfig | None = None  # whose held-out side is measured; None: what the run itself held out
    seed: int = setting(0, at_least=0)  # of the held-out sentences that are taken, their changes, and what is written
    evaluation: EvaluationConfig = setting(EvaluationConfig())
    logger: LoggerConfig = setting(MISSING, HOW)


@stage("export")
@dataclass(kw_only=True, slots=True)
class ExportStage(StageConfig):
    run: str = setting(MISSING, HOW, is_file=True)  # pretrained or tuned: its name or folder; its digest is identity
    export: ExportConfig = setting(ExportConfig())
    logger: LoggerConfig | None = setting(None, HOW)


def _needs(kind: DataKind, data: DataConfig, stage: str) -> None:
    if data.kind is not kind:
        raise ConfigError(
            f"data={data.name} is {data.kind.value}, but stage={stage} learns from {kind.value}. Choose "
            f"data={kind.value}, for example."
        )


def _share_out(data: DataConfig, trainer: TrainerConfig) -> None:
    """Refuse rows that the devices cannot share equally."""
    if data.batch_size % trainer.world_size:
        above = -(-data.batch_size // trainer.world_size) * trainer.world_size
        raise ConfigError(
            f"data.batch_size={data.batch_size} gives trainer.devices={trainer.devices} on trainer.num_nodes="
            f"{trainer.num_nodes} unequal shares. Set data.batch_size={above}."
        )
    if trainer.micro_batch_size is not None:
        rows = data.batch_size // trainer.world_size
        divides("the rows of a device", rows, "trainer.micro_batch_size", trainer.micro_batch_size)
