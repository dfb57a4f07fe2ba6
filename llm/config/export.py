"""The schema of stage=export: which form a model leaves in, and how far it may be from the run that it is of."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from llm.config.fields import HOW, check_settings, setting


class WeightType(Enum):
    fp32 = "float32"
    fp16 = "float16"
    bf16 = "bfloat16"


class GgufType(Enum):
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"  # 8 bits a weight and a scale for every 32
    q4_k_m = "q4_k_m"  # 4.5 bits or so, by llama.cpp's own quantizer


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """A model or an adapter in Hugging Face format, and a file for llama.cpp if it is asked for."""

    merge: bool = True  # write a whole model, the adapter merged into its base; False: the adapter alone
    dtype: WeightType = WeightType.fp32  # of the weights
    # weights of a file for llama.cpp beside; None: no such file
    gguf: GgufType | None = setting(None, only_with=("merge", (True,)))
    # that an adapter's config names, such as a hub id; None: the base run's folder
    base_model: str | None = setting(None, only_with=("merge", (False,)))
    max_logit_difference: float | None = setting(None, HOW, at_least=0)  # None: what rounding explains

    def __post_init__(self) -> None:
        check_settings(self, "export")

    def judged(self, proof: Mapping[str, float]) -> tuple[float, float]:
        """(the difference of logits that counts, the most that it may be), of what an export's proof measured.

        In fp32 the largest counts, for nothing is rounded. In fp16 and bf16 that of the median position: rounding may
        send a token of a mixture of experts to another expert, which moves some positions far.
        """
        if self.max_logit_difference is not None:
            return proof["max_logit_difference"], self.max_logit_difference
        most = self.dtype is WeightType.fp32
        return proof["max_logit_difference" if most else "median_logit_difference"], proof["rounding"]
