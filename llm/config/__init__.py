"""What a run may be asked for: the schema of conf/, and the way from Hydra's config to plain, checked dataclasses.

Hydra merges the YAML files and the command line into the schema, so a wrong key or type fails before any work.
Nothing else in llm/ imports Hydra or OmegaConf, and nothing here imports anything heavy.
"""

from llm.config.compose import from_hydra, job_errors, job_overrides, run_hydra
from llm.config.documents import CleaningConfig, CleaningLevel, FileFormat, LayoutConfig
from llm.config.fields import identity_settings
from llm.config.ladder import ladder_overrides
from llm.config.schema import (
    ALPHABET_SIZES,
    STAGES,
    Alphabet,
    BadRecords,
    DataConfig,
    DataKind,
    DataSource,
    FinetuneStage,
    Morphemes,
    Packing,
    PartConfig,
    PretrainStage,
    Reuse,
    ShardsStage,
    StageConfig,
    TokenizerConfig,
    TokenizerStage,
)
from llm.config.sweeping import HalvingConfig, PoolConfig, RetryConfig, Sampler, SweeperConfig, with_number
from llm.config.training import (
    LINEAR_LAYERS,
    Accelerator,
    Algorithm,
    Architecture,
    LoggerConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    Precision,
    Schedule,
    TrainerConfig,
    WandbMode,
    require_one_graph,
)

__all__ = [
    "ALPHABET_SIZES",
    "LINEAR_LAYERS",
    "STAGES",
    "Accelerator",
    "Algorithm",
    "Alphabet",
    "Architecture",
    "BadRecords",
    "CleaningConfig",
    "CleaningLevel",
    "DataConfig",
    "DataKind",
    "DataSource",
    "FileFormat",
    "FinetuneStage",
    "HalvingConfig",
    "LayoutConfig",
    "LoggerConfig",
    "LoraConfig",
    "ModelConfig",
    "Morphemes",
    "OptimizerConfig",
    "Packing",
    "PartConfig",
    "PoolConfig",
    "Precision",
    "PretrainStage",
    "RetryConfig",
    "Reuse",
    "Sampler",
    "Schedule",
    "ShardsStage",
    "StageConfig",
    "SweeperConfig",
    "TokenizerConfig",
    "TokenizerStage",
    "TrainerConfig",
    "WandbMode",
    "from_hydra",
    "identity_settings",
    "job_errors",
    "job_overrides",
    "ladder_overrides",
    "require_one_graph",
    "run_hydra",
    "with_number",
]
