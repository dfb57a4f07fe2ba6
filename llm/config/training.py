"""The schema of what trains, and how: the model, the optimizer, the trainer and the logger."""

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from omegaconf import MISSING

from llm.config.fields import HOW, WHERE_SET, at_least, below_one, divides, expand_home, label_of
from llm.errors import ConfigError


class Architecture(Enum):
    gpt2 = "gpt2"
    llama = "llama"
    qwen3 = "qwen3"  # llama with normed queries and keys
    gemma3 = "gemma3"  # most layers see the last 512 tokens alone
    qwen3_moe = "qwen3_moe"  # qwen3 whose every token goes through a few of many experts
    other = "other"  # of model.path alone: what its config.json says


MOST_LAYERS = 1_000  # of a model: the deepest that there are have 126, and an object for each is made before a check


class Accelerator(Enum):
    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


class Precision(Enum):
    auto = "auto"  # bf16 where the device is fast at it, else fp32; what it comes to is in the identity
    fp32 = "32-true"
    bf16 = "bf16-mixed"


class Strategy(Enum):
    auto = "auto"  # ddp on several devices, none on one
    ddp = "ddp"  # every device holds the whole model, its gradients and the optimizer's state
    fsdp = "fsdp"  # the devices share them out, and put a layer together as it is needed (FSDP2)


class WandbMode(Enum):
    auto = "auto"  # online when it can log in, else offline, and it says which and why
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """A causal language model of Hugging Face transformers; the vocabulary size comes from the tokenizer.

    With a path it is one that is there already, and what else it is comes from its config.json.
    """

    name: str = field(default=MISSING, metadata=HOW)
    architecture: Architecture | None = MISSING  # None: of model.path
    path: str | None = field(default=None, metadata=HOW)  # Hugging Face folder, finished run or hub id to go on from;
    # its weights' digest is in the identity
    resize_vocabulary: bool = False  # take another tokenizer than the one of model.path: new tokens get new embeddings
    num_layers: int = 3
    num_heads: int = 4
    hidden_size: int = 160
    intermediate_size: int | None = (
        None  # None: 4 x hidden_size for gpt2; 8/3 x for the others (over a token's experts)
    )
    num_key_value_heads: int | None = None  # not for gpt2; None: as many as num_heads
    num_experts: int | None = None  # qwen3_moe only; None: 8
    num_experts_per_token: int | None = None  # qwen3_moe only; None: 2
    max_position_embeddings: int = 1024
    dropout: float = 0.0
    tie_word_embeddings: bool = True
    pad_vocab_to_multiple_of: int | None = field(default=None, metadata=WHERE_SET)  # rows of the embeddings and the
    # head while it trains: GPUs want a multiple of 64 or 128. No loss, text, count or saved model has the padding
    extra: dict[str, Any] = field(default_factory=dict)  # any other key of the architecture's Hugging Face config

    def __post_init__(self) -> None:
        expand_home(self, "path")
        if self.pad_vocab_to_multiple_of is not None:
            at_least("model.pad_vocab_to_multiple_of", self.pad_vocab_to_multiple_of, 1)
        if self.path is not None:
            if self.extra:
                raise ConfigError("model.extra is not used with model.path, whose config.json says it. Leave it out.")
            return
        self._refuse_what_is_for_a_path()
        for key in ("num_layers", "num_heads", "hidden_size", "max_position_embeddings"):
            at_least(f"model.{key}", getattr(self, key), 1)
        if self.num_layers > MOST_LAYERS:
            raise ConfigError(f"model.num_layers={self.num_layers} is too large. Set it to {MOST_LAYERS} or less.")
        divides("model.hidden_size", self.hidden_size, "model.num_heads", self.num_heads)
        if self.architecture is Architecture.gpt2:
            if self.num_key_value_heads is not None:
                raise ConfigError("model.num_key_value_heads is not a setting of gpt2. Remove it.")
        else:
            self._check_heads()
        if self.intermediate_size is not None:
            at_least("model.intermediate_size", self.intermediate_size, 1)
        self._check_experts()
        below_one("model.dropout", self.dropout)

    @property
    def label(self) -> str:
        """What a run of it is called, unless the user says."""
        return self.name if self.path is None else label_of(self.path, otherwise=self.name)

    def _refuse_what_is_for_a_path(self) -> None:
        if self.architecture is None:
            raise ConfigError(
                "model.path is missing. Set model.path=<a Hugging Face folder, a finished pretraining run, or the "
                "hub's id of a model>."
            )
        if self.architecture is Architecture.other:
            raise ConfigError("model.architecture=other is of model.path alone. Choose model=pretrained.")
        if self.resize_vocabulary:
            raise ConfigError("model.resize_vocabulary=true is for model=pretrained. Leave it out.")

    def _check_heads(self) -> None:
        if self.hidden_size // self.num_heads % 2:
            raise ConfigError(
                f"model.hidden_size={self.hidden_size} over model.num_heads={self.num_heads} gives heads of "
                f"odd size {self.hidden_size // self.num_heads}; rotary positions need an even one. Change either."
            )
        if self.num_key_value_heads is not None:
            divides("model.num_heads", self.num_heads, "model.num_key_value_heads", self.num_key_value_heads)

    def _check_experts(self) -> None:
        for key in ("num_experts", "num_experts_per_token"):
            if (number := getattr(self, key)) is None:
                continue
            if self.architecture is not Architecture.qwen3_moe:
                assert self.architecture is not None
                raise ConfigError(
                    f"model.{key} is a setting of qwen3_moe; {self.architecture.value} has none. Remove it."
                )
            at_least(f"model.{key}", number, 1)
        if (self.num_experts_per_token or 2) > (self.num_experts or 8):
            raise ConfigError(
                f"model.num_experts_per_token={self.num_experts_per_token or 2} is more than model.num_experts="
                f"{self.num_experts or 8}. Lower the first or raise the second."
            )


class Algorithm(Enum):
    adamw = "adamw"
    muon = "muon"  # for the matrices of the blocks; AdamW for the rest


class Schedule(Enum):
    cosine = "cosine"  # down to the minimum at the last step
    linear = "linear"  # likewise, in a straight line
    wsd = "wsd"  # warmup, stable, decay: the peak until decay_share of the steps are left, then down in decay_shape
    constant = "constant"  # the peak to the end


class DecayShape(Enum):
    one_minus_sqrt = "one_minus_sqrt"  # better than a line: Haegele et al. 2024, arXiv:2405.18392
    linear = "linear"


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """An optimizer, and the learning rate of each step: a linear warmup, then the schedule."""

    algorithm: Algorithm = Algorithm.adamw
    learning_rate: float = 1e-3  # peak, reached after warmup
    muon_learning_rate: float | None = None  # of Muon's matrices, in AdamW's measure; None: learning_rate
    muon_momentum: float = 0.95
    schedule: Schedule = Schedule.cosine
    decay_share: float = 0.2  # of trainer.max_steps, for schedule=wsd
    decay_shape: DecayShape = DecayShape.one_minus_sqrt  # for schedule=wsd
    min_learning_rate_ratio: float = 0.1
    warmup_steps: int = 100
    weight_decay: float = 0.1  # of matrices; biases, norms and embeddings are not decayed
    beta1: float = 0.9
    beta2: float = 0.95
    gradient_clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for key in ("learning_rate", "muon_learning_rate"):
            if (rate := getattr(self, key)) is not None and not 0 < rate < float("inf"):
                raise ConfigError(f"optimizer.{key}={rate} must be a number above 0, such as 1e-3.")
        for key in ("min_learning_rate_ratio", "weight_decay"):
            if not 0 <= (value := getattr(self, key)) <= 1:
                raise ConfigError(f"optimizer.{key}={value} is out of range. Set a value from 0 to 1.")
        if not 0 < self.decay_share <= 1:
            raise ConfigError(
                f"optimizer.decay_share={self.decay_share} is out of range. Set a share above 0, up to 1, such as 0.2."
            )
        for key in ("beta1", "beta2", "muon_momentum"):
            below_one(f"optimizer.{key}", getattr(self, key))
        if not self.gradient_clip_norm > 0:
            raise ConfigError(
                f"optimizer.gradient_clip_norm={self.gradient_clip_norm} must be above 0. Set it to inf not to clip."
            )
        at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        if self.algorithm is not Algorithm.muon:
            self._refuse("algorithm", "optimizer=muon", "muon_learning_rate", "muon_momentum")
        if self.schedule is not Schedule.wsd:
            self._refuse("schedule", "optimizer.schedule=wsd", "decay_share", "decay_shape")
        if self.schedule is Schedule.constant:
            self._refuse("schedule", "another schedule", "min_learning_rate_ratio")

    def _refuse(self, choice: str, instead: str, *unused: str) -> None:
        """Refuse settings that this choice leaves unused, where they are not their defaults."""
        for f in fields(self):
            if f.name in unused and (value := getattr(self, f.name)) != f.default:
                raise ConfigError(
                    f"optimizer.{f.name}={value.value if isinstance(value, Enum) else value} is not used by optimizer."
                    f"{choice}={getattr(self, choice).value}. Choose {instead}, or leave it out."
                )


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """How long, on what, and how often to look."""

    max_steps: int = 1000  # optimizer steps
    max_bytes: int | None = field(default=None, metadata=HOW)  # in place of max_steps, which is computed from it:
    max_tokens: int | None = field(default=None, metadata=HOW)  # raw text, or tokens, or FLOPs, that a pretraining
    max_flops: float | None = field(default=None, metadata=HOW)  # is fed; one of the three
    precision: Precision = Precision.auto
    compile: bool = field(default=False, metadata=HOW)  # by torch.compile: pays where a run lasts many minutes
    activation_checkpointing: bool = field(default=False, metadata=HOW)  # blocks run twice: less memory, a third slower
    accelerator: Accelerator = field(default=Accelerator.auto, metadata=HOW)
    devices: int = field(default=1, metadata=HOW)  # of each node
    num_nodes: int = field(default=1, metadata=HOW)  # machines; more than one are started by srun or torch's launcher
    strategy: Strategy = field(default=Strategy.auto, metadata=HOW)
    micro_batch_size: int | None = field(default=None, metadata=HOW)  # rows per forward pass; None: what fits; less
    # where the device runs out of memory, the rows of a step staying the same
    num_workers: int = field(default=0, metadata=HOW)
    profile_steps: int | None = field(default=None, metadata=HOW)  # traced after a warm-up, into the run's folder
    log_every_steps: int = field(default=10, metadata=HOW)
    validate_every_steps: int = field(default=200, metadata=HOW)
    checkpoint_every_steps: int = field(default=200, metadata=HOW)
    checkpoint_every_minutes: float | None = field(default=None, metadata=HOW)  # by the clock as well
    keep_checkpoints: int = field(default=2, metadata=HOW)  # the newest ones
    keep_best: bool = field(default=False, metadata=HOW)  # the checkpoint of the lowest val/loss, too
    stop_after_skipped_steps: int = field(default=5, metadata=HOW)  # in a row, for gradients that are not finite
    sample_prompts: list[str] = field(default_factory=lambda: ["대한민국은", "이 법은"], metadata=HOW)
    sample_tokens: int = field(default=48, metadata=HOW)
    sample_temperature: float = field(
        default=0.7, metadata=HOW
    )  # 0: the likeliest token; the draw is the same each time

    def __post_init__(self) -> None:
        for key in ("max_steps", "devices", "num_nodes", "log_every_steps", "validate_every_steps",
                    "checkpoint_every_steps", "keep_checkpoints", "stop_after_skipped_steps",
                    "sample_tokens"):  # fmt: skip
            at_least(f"trainer.{key}", getattr(self, key), 1)
        for key in BUDGETS:
            if (amount := getattr(self, key)) is not None and not 1 <= amount < float("inf"):
                raise ConfigError(f"trainer.{key}={amount} is out of range. Set a number above 0, or null.")
        if len(given := [key for key in BUDGETS if getattr(self, key) is not None]) > 1:
            raise ConfigError(f"trainer.{given[0]} and trainer.{given[1]} are both set. Set one of them to null.")
        at_least("trainer.num_workers", self.num_workers, 0)
        if self.micro_batch_size is not None:
            at_least("trainer.micro_batch_size", self.micro_batch_size, 1)
        if self.profile_steps is not None:
            at_least("trainer.profile_steps", self.profile_steps, 1)
        if self.strategy is Strategy.fsdp and self.compile:
            raise ConfigError(
                "trainer.compile=true is one graph, which trainer.strategy=fsdp breaks at each block. Set "
                "trainer.strategy=ddp, or trainer.compile=false."
            )
        if self.strategy is not Strategy.auto and self.world_size == 1:
            raise ConfigError(
                f"trainer.strategy={self.strategy.value} is for several devices, but trainer.devices=1 and "
                "trainer.num_nodes=1. Raise one of them, or leave trainer.strategy out."
            )
        if self.checkpoint_every_minutes is not None and not self.checkpoint_every_minutes > 0:
            raise ConfigError(
                f"trainer.checkpoint_every_minutes={self.checkpoint_every_minutes} must be above 0. Set null for none."
            )
        if not 0 <= self.sample_temperature < float("inf"):
            raise ConfigError(f"trainer.sample_temperature={self.sample_temperature} is out of range. Set 0 or more.")

    @property
    def world_size(self) -> int:
        """Devices of all nodes: as many processes share a step's rows out."""
        return self.devices * self.num_nodes


BUDGETS = ("max_bytes", "max_tokens", "max_flops")


@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """Weights & Biases; metrics.jsonl is written whatever this says."""

    mode: WandbMode = WandbMode.auto
    project: str = "ttukttak"
    entity: str | None = None
    group: str | None = None  # None: the stage
    tags: list[str] = field(default_factory=list)
