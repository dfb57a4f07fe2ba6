"""What a run may be asked for: the schema of conf/, and the way from Hydra's config to plain, checked dataclasses.

Hydra merges the YAML files and the command line into the schema, so a wrong key or type fails before any work.
Nothing else in llm/ imports Hydra or OmegaConf, and nothing here imports anything heavy.
"""

from llm.config.compose import (
    as_recorded,
    composed,
    data_config,
    from_hydra,
)
from llm.config.data import BadRecords, DataConfig, DataKind, DataSource, Overlong, Packing, PartConfig
from llm.config.documents import CleaningConfig, CleaningLevel, FileFormat, LayoutConfig, RepeatedTurns, Shape, is_path
from llm.config.evaluation import EvaluationConfig
from llm.config.export import ExportConfig, GgufType, WeightType
from llm.config.fields import identity_settings
from llm.config.ladder import ladder_overrides
from llm.config.overrides import as_value, readable, to_paste
from llm.config.sampling import Sampling
from llm.config.slurm import SlurmConfig
from llm.config.stages import (
    MODEL_STAGES,
    STAGES,
    EvaluateStage,
    ExportStage,
    FinetuneStage,
    PretrainStage,
    Reuse,
    ShardsStage,
    StageConfig,
    TokenizerStage,
)
from llm.config.sweeping import HalvingConfig, PoolConfig, RetryConfig, Sampler, SweeperConfig, with_number
from llm.config.tokenizer import ALPHABET_SIZES, Alphabet, Morphemes, TokenizerConfig
from llm.config.training import (
    MOST_LAYERS,
    Accelerator,
    Algorithm,
    Architecture,
    DecayShape,
    LoggerConfig,
    ModelConfig,
    OptimizerConfig,
    Precision,
    Schedule,
    Strategy,
    TrainerConfig,
    WandbMode,
)
from llm.config.tuning import ALL_LINEAR, LoraConfig, Method, WeightPrecision

__all__ = [
    "ALL_LINEAR",
    "ALPHABET_SIZES",
    "MODEL_STAGES",
    "MOST_LAYERS",
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
    "DecayShape",
    "EvaluateStage",
    "EvaluationConfig",
    "ExportConfig",
    "ExportStage",
    "FileFormat",
    "FinetuneStage",
    "GgufType",
    "HalvingConfig",
    "LayoutConfig",
    "LoggerConfig",
    "LoraConfig",
    "Method",
    "ModelConfig",
    "Morphemes",
    "OptimizerConfig",
    "Overlong",
    "Packing",
    "PartConfig",
    "PoolConfig",
    "Precision",
    "PretrainStage",
    "RepeatedTurns",
    "RetryConfig",
    "Reuse",
    "Sampler",
    "Sampling",
    "Schedule",
    "Shape",
    "ShardsStage",
    "SlurmConfig",
    "StageConfig",
    "Strategy",
    "SweeperConfig",
    "TokenizerConfig",
    "TokenizerStage",
    "TrainerConfig",
    "WandbMode",
    "WeightPrecision",
    "WeightType",
    "as_recorded",
    "as_value",
    "composed",
    "data_config",
    "from_hydra",
    "identity_settings",
    "is_path",
    "ladder_overrides",
    "readable",
    "to_paste",
    "with_number",
]
