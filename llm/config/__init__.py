"""What a run may be asked for: the schema of conf/, and the way from Hydra's config to plain, checked dataclasses.

Hydra merges the YAML files and the command line into the schema, so a wrong key or type fails before any work.
Nothing else in llm/ imports Hydra or OmegaConf, and nothing here imports anything heavy.
"""

from llm.config.compose import from_hydra, run_hydra
from llm.config.schema import (
    ALPHABET_SIZES,
    LINEAR_LAYERS,
    STAGES,
    Accelerator,
    Alphabet,
    Architecture,
    BadRecords,
    DataConfig,
    DataKind,
    DataSource,
    FinetuneStage,
    LoggerConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    Precision,
    PretrainStage,
    Reuse,
    ShardsStage,
    StageConfig,
    TokenizerConfig,
    TokenizerStage,
    TrainerConfig,
    WandbMode,
    identity_settings,
)

__all__ = [
    "ALPHABET_SIZES",
    "LINEAR_LAYERS",
    "STAGES",
    "Accelerator",
    "Alphabet",
    "Architecture",
    "BadRecords",
    "DataConfig",
    "DataKind",
    "DataSource",
    "FinetuneStage",
    "LoggerConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Precision",
    "PretrainStage",
    "Reuse",
    "ShardsStage",
    "StageConfig",
    "TokenizerConfig",
    "TokenizerStage",
    "TrainerConfig",
    "WandbMode",
    "from_hydra",
    "identity_settings",
    "run_hydra",
]
