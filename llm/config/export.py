"""The schema of stage=export: which form a model leaves in, and how far it may be from the run that it is of."""

from dataclasses import dataclass, field
from enum import Enum

from llm.config.fields import HOW
from llm.errors import ConfigError


class WeightType(Enum):
    fp32 = "float32"
    fp16 = "float16"
    bf16 = "bfloat16"


class GgufType(Enum):
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"  # 8 bits a weight and a scale for every 32


# Of a logit, of what was exported against the run. fp32: the order of sums. The others round each weight, to 11 and to
# 8 bits. Models of a million parameters gave 6e-6, 0.005 and 0.02 to 0.04: ten times that, for larger ones.
BOUNDS = {WeightType.fp32: 1e-4, WeightType.fp16: 0.05, WeightType.bf16: 0.5}


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """A model or an adapter in Hugging Face format, and a file for llama.cpp if it is asked for."""

    merge: bool = True  # write a whole model, the adapter merged into its base; False: the adapter alone
    dtype: WeightType = WeightType.fp32  # of the weights
    gguf: GgufType | None = None  # weights of a file for llama.cpp beside; None: no such file
    base_model: str | None = None  # that an adapter's config names, such as a hub id; None: the base run's folder
    max_logit_difference: float | None = field(default=None, metadata=HOW)  # more is refused; None: by dtype

    def __post_init__(self) -> None:
        if self.max_logit_difference is not None and not 0 <= self.max_logit_difference < float("inf"):
            raise ConfigError(
                f"export.max_logit_difference={self.max_logit_difference} is out of range. Set 0 or more, such as 1e-4."
            )
        if self.base_model is not None and self.merge:
            raise ConfigError(
                f"export.base_model={self.base_model} is for an adapter; a merged model needs no base. Set "
                "export.merge=false, or leave it out."
            )
        if self.gguf is not None and not self.merge:
            raise ConfigError(
                f"export.gguf={self.gguf.name} is a whole model, and export.merge=false asks for the adapter alone. "
                "Leave one of them out."
            )

    @property
    def bound(self) -> float:
        """The most by which a logit may differ."""
        return BOUNDS[self.dtype] if self.max_logit_difference is None else self.max_logit_difference

    @property
    def merge_bound(self) -> float:
        """The most by which the merge itself may change a logit, in fp32, before weights are rounded."""
        return max(BOUNDS[WeightType.fp32], self.max_logit_difference or 0)
