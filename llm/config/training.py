"""The schema of what trains, and how: the model, the optimizer, the trainer and the logger."""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from omegaconf import MISSING

from llm.config.fields import HOW, check_settings, divides, label_of, setting
from llm.errors import ConfigError


class Architecture(StrEnum):
    """Those whose settings are known here; any other causal language model of transformers goes by its model_type."""

    gpt2 = "gpt2"
    llama = "llama"
    qwen3 = "qwen3"  # llama with normed queries and keys
    gemma3 = "gemma3"  # most layers see the last 512 tokens alone
    qwen3_moe = "qwen3_moe"  # qwen3 whose every token goes through a few of many experts


# Only a mixture of experts has them; of an architecture that is not known here it is not known.
OF_EXPERTS = ("architecture", lambda it: it not in [*Architecture] or it == Architecture.qwen3_moe)
MOST_LAYERS = 1_000  # of a model: the deepest that there are have 126, and an object for each is made before a check


class Accelerator(Enum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Precision(Enum):
    auto = "auto"  # bf16 where the device is fast at it, else fp32; what it came to is in run.json, not in the key
    fp32 = "32-true"
    bf16 = "bf16-mixed"


class ResidualPrecision(Enum):
    bf16 = "bf16"


class Strategy(Enum):
    auto = "auto"  # ddp on several devices, none on one
    ddp = "ddp"  # every device holds the whole model, its gradients and the optimizer's state
    fsdp = "fsdp"  # the devices share them out, and put a layer together as it is needed (FSDP2)


class WandbMode(Enum):
    auto = "auto"  # online when it can log in, else offline, and it says which and why
    online = "online"
    offline = "offline"
    disabled = "disabled"


class NewEmbeddings(Enum):
    pieces = "pieces"  # the mean of the tokens that the base cuts its text into
    weighted = "weighted"  # the same, by how long each is
    last = "last"  # the last of them
    mean = "mean"  # of all tokens that are kept: Hewitt 2021
    random = "random"  # drawn with the mean and the variance of those: to compare with


class Trainable(Enum):
    all = "all"
    embeddings = "embeddings"  # and the head
    new_rows = "new_rows"  # of these two, those of tokens that the base's tokenizer lacks
    lora = "lora"  # adapters, and the new rows where there are some
    lora_embeddings = "lora_embeddings"  # adapters, embeddings and head


OF_ADAPTERS = (Trainable.lora, Trainable.lora_embeddings)


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """A causal language model of Hugging Face transformers; the vocabulary size comes from the tokenizer.

    With a path it is one that is there already, and what else it is comes from its config.json.
    """

    name: str = setting(MISSING, HOW)
    architecture: str | None = MISSING  # a model_type of transformers; None: of model.path
    path: str | None = setting(None, HOW, is_file=True)  # Hugging Face folder, finished run or hub id to go on from;
    # its weights' digest is in the identity
    # take another tokenizer than the one of model.path: new tokens get new embeddings
    resize_vocabulary: bool = setting(False, only_with=("path", bool))
    # of those that are new in it; None: pieces
    new_embeddings: NewEmbeddings | None = setting(None, only_with=("path", bool), only_where_set=True)
    # what of it is trained, the rest staying as it is; None: all
    trainable: Trainable | None = setting(None, only_with=("path", bool), only_where_set=True)
    num_layers: int = setting(3, at_least=1, at_most=MOST_LAYERS)
    num_heads: int = setting(4, at_least=1)
    hidden_size: int = setting(160, at_least=1)
    # None: 4 x hidden_size for gpt2; 8/3 x for the others (over a token's experts)
    intermediate_size: int | None = setting(None, at_least=1)
    # None: as many as num_heads
    num_key_value_heads: int | None = setting(None, at_least=1, only_with=("architecture", lambda it: it != "gpt2"))
    num_experts: int | None = setting(None, at_least=1, only_with=OF_EXPERTS)  # None: 8
    num_experts_per_token: int | None = setting(None, at_least=1, only_with=OF_EXPERTS)  # None: 2
    max_position_embeddings: int = setting(1024, at_least=1)
    dropout: float = setting(0.0, at_least=0, below=1)
    tie_word_embeddings: bool = True
    # rows of the embeddings and the head while it trains: GPUs want a multiple of 64 or 128. No loss, text, count or
    # saved model has the padding
    pad_vocab_to_multiple_of: int | None = setting(None, at_least=1, only_where_set=True)
    # any other key of the architecture's Hugging Face config
    extra: dict[str, Any] = setting({}, only_with=("path", (None,)))

    def __post_init__(self) -> None:
        check_settings(self, "model")
        if self.resize_vocabulary and self.new_embeddings is None:
            self.new_embeddings = NewEmbeddings.pieces
        if self.trainable is Trainable.all:
            self.trainable = None
        if self.path is not None:
            return
        if self.architecture is None:
            raise ConfigError(
                "model.path is missing. Set model.path=<a Hugging Face folder, a finished pretraining run, or the "
                "hub's id of a model>."
            )
        divides("model.hidden_size", self.hidden_size, "model.num_heads", self.num_heads)
        head_size = self.hidden_size // self.num_heads
        if self.architecture != Architecture.gpt2 and head_size % 2:
            raise ConfigError(
                f"model.hidden_size={self.hidden_size} over model.num_heads={self.num_heads} gives heads of odd size "
                f"{head_size}; rotary positions need an even one. Change either."
            )
        if self.num_key_value_heads is not None:
            divides("model.num_heads", self.num_heads, "model.num_key_value_heads", self.num_key_value_heads)
        if (self.num_experts_per_token or 2) > (self.num_experts or 8):
            raise ConfigError(
                f"model.num_experts_per_token={self.num_experts_per_token or 2} is more than model.num_experts="
                f"{self.num_experts or 8}. Lower the first or raise the second."
            )

    @property
    def label(self) -> str:
        """What a run of it is called, unless the user says."""
        return self.name if self.path is None else label_of(self.path, otherwise=self.name)

    @property
    def needs_library(self) -> bool:
        """Whether transformers must be asked whether there can be such a model."""
        return self.path is None and (bool(self.extra) or self.architecture not in [*Architecture])


class Algorithm(Enum):
    adamw = "adamw"
    muon = "muon"  # for the matrices of the blocks; AdamW for the rest


class Schedule(Enum):
    cosine = "cosine"  # down to the minimum at the last step
    linear = "linear"  # likewise, in a straight line
    wsd = "wsd"  # warmup, stable, decay: the peak until decay_share of the steps are left, then down in decay_shape
    constant = "constant"  # the peak to the end


OF_MUON = ("algorithm", (Algorithm.muon,))
OF_WSD = ("schedule", (Schedule.wsd,))
OF_DECAYS = ("schedule", (Schedule.cosine, Schedule.linear, Schedule.wsd))


class DecayShape(Enum):
    one_minus_sqrt = "one_minus_sqrt"  # better than a line: Haegele et al. 2024, arXiv:2405.18392
    linear = "linear"


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """An optimizer, and the learning rate of each step: a linear warmup, then the schedule."""

    algorithm: Algorithm = Algorithm.adamw
    learning_rate: float = setting(1e-3, above=0)  # peak, reached after warmup
    # of embeddings, head and the rows of new tokens; None: as above
    embedding_learning_rate: float | None = setting(None, above=0, only_where_set=True)
    # of Muon's matrices, in AdamW's units; None: as above
    muon_learning_rate: float | None = setting(None, above=0, only_with=OF_MUON)
    muon_momentum: float = setting(0.95, at_least=0, below=1, only_with=OF_MUON)
    schedule: Schedule = Schedule.cosine
    decay_share: float = setting(0.2, above=0, at_most=1, only_with=OF_WSD)  # of trainer.max_steps
    decay_shape: DecayShape = setting(DecayShape.one_minus_sqrt, only_with=OF_WSD)
    min_learning_rate_ratio: float = setting(0.1, at_least=0, at_most=1, only_with=OF_DECAYS)
    warmup_steps: int = setting(100, at_least=0)
    weight_decay: float = setting(0.1, at_least=0, at_most=1)  # of matrices; not of biases, norms and embeddings
    beta1: float = setting(0.9, at_least=0, below=1)
    beta2: float = setting(0.95, at_least=0, below=1)
    gradient_clip_norm: float = setting(1.0, above=0, at_most=float("inf"))  # inf: not clipped

    def __post_init__(self) -> None:
        check_settings(self, "optimizer")


IN_BF16 = ("precision", (Precision.auto, Precision.bf16))
BUDGETS = ("max_bytes", "max_tokens", "max_flops")


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """How long, on what, and how often to look."""

    max_steps: int = setting(1000, at_least=1, computed_from=BUDGETS)  # optimizer steps
    max_bytes: int | None = setting(None, HOW, at_least=1)  # in place of max_steps, which is computed from it: raw
    max_tokens: int | None = setting(None, HOW, at_least=1)  # text, or tokens, or FLOPs, that a pretraining is fed;
    max_flops: float | None = setting(None, HOW, at_least=1)  # one of the three
    precision: Precision = Precision.auto
    # of what goes from block to block (the residual stream), where precision is bf16: fewer bytes to move. None: fp32
    residual_precision: ResidualPrecision | None = setting(None, only_with=IN_BF16, only_where_set=True)
    compile: bool = setting(False, HOW)  # by torch.compile: pays where a run lasts many minutes
    activation_checkpointing: bool = setting(False, HOW)  # blocks run twice: less memory, a third slower
    accelerator: Accelerator = setting(Accelerator.auto, HOW)
    devices: int = setting(1, HOW, at_least=1)  # of each node
    num_nodes: int = setting(1, HOW, at_least=1)  # machines; more than one are started by srun or torch's launcher
    strategy: Strategy = setting(Strategy.auto, HOW)
    micro_batch_size: int | None = setting(None, HOW, at_least=1)  # rows per forward pass; None: what fits; less
    # where the device runs out of memory, the rows of a step staying the same
    num_workers: int = setting(0, HOW, at_least=0)
    profile_steps: int | None = setting(None, HOW, at_least=1)  # traced after a warm-up, into the run's folder
    log_every_steps: int = setting(10, HOW, at_least=1)
    validate_every_steps: int = setting(200, HOW, at_least=1)
    checkpoint_every_steps: int = setting(200, HOW, at_least=1)
    checkpoint_every_minutes: float | None = setting(None, HOW, above=0)  # by the clock as well
    keep_checkpoints: int = setting(2, HOW, at_least=1)  # the newest ones
    keep_best: bool = setting(False, HOW)  # the checkpoint of the lowest val/loss, too
    stop_after_skipped_steps: int = setting(5, HOW, at_least=1)  # in a row, for gradients that are not finite
    sample_prompts: list[str] = setting(["대한민국은", "이 법은"], HOW)
    sample_tokens: int = setting(48, HOW, at_least=1)
    sample_temperature: float = setting(0.7, HOW, at_least=0)  # 0: the likeliest token; the draw is the same each time

    def __post_init__(self) -> None:
        check_settings(self, "trainer")
        if len(given := [key for key in BUDGETS if getattr(self, key) is not None]) > 1:
            raise ConfigError(f"trainer.{given[0]} and trainer.{given[1]} are both set. Set one of them to null.")
        if self.strategy is Strategy.fsdp and self.compile:
            raise ConfigError("trainer.strategy=fsdp breaks the graph of trainer.compile=true. Set one of them anew.")
        if self.strategy is not Strategy.auto and self.world_size == 1:
            raise ConfigError(
                f"trainer.strategy={self.strategy.value} is for several devices, but trainer.devices=1 and "
                "trainer.num_nodes=1. Raise one of them, or leave trainer.strategy out."
            )

    @property
    def world_size(self) -> int:
        """Devices of all nodes: as many processes share a step's rows out."""
        return self.devices * self.num_nodes


@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """Weights & Biases; metrics.jsonl is written whatever this says."""

    mode: WandbMode = WandbMode.auto
    project: str = "ttukttak"
    entity: str | None = None
    group: str | None = setting(None, is_masked=True)  # None: the sweep, else the stage
    tags: list[str] = setting([], is_masked=True)
