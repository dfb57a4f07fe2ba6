"""The schema of a tuning: which weights of a base are trained, and in which precision the rest is held."""

from dataclasses import dataclass, fields
from enum import Enum

from llm.config.fields import check_settings, refuse_unused, setting
from llm.errors import ConfigError

ALL_LINEAR = "all-linear"  # of lora.target_modules: every linear layer that the model itself has


class Method(Enum):
    lora = "lora"  # Hu et al. 2021, arXiv:2106.09685
    rslora = "rslora"  # scaled by alpha / sqrt(rank): Kalajdzievski 2023, arXiv:2312.03732
    dora = "dora"  # the size of each column apart from its direction: Liu et al. 2024, arXiv:2402.09353
    pissa = "pissa"  # begins from the largest singular values: Meng et al. 2024, arXiv:2404.02948
    qlora = "qlora"  # on a base in 4 bits: Dettmers et al. 2023, arXiv:2305.14314
    full = "full"  # no adapter: every weight


class WeightPrecision(Enum):
    fp32 = "float32"
    bf16 = "bfloat16"


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters on the linear layers of a frozen base, or every weight of it."""

    method: Method = Method.lora
    rank: int = setting(8, at_least=1)
    alpha: int = setting(16, at_least=1)  # the update is scaled by alpha / rank
    dropout: float = setting(0.0, at_least=0, below=1)
    target_modules: list[str] | None = None  # None: every linear layer but the head; or [all-linear]
    base_precision: WeightPrecision = WeightPrecision.fp32  # of the frozen weights while training
    precision: WeightPrecision = WeightPrecision.fp32  # of the adapter's weights, and so of their moments

    def __post_init__(self) -> None:
        check_settings(self, "lora")
        if self.target_modules == []:
            raise ConfigError("lora.target_modules is empty. Name layers, or set it to null for every linear layer.")
        if self.method is Method.full:
            self._refuse("every weight is trained, in fp32", *(f.name for f in fields(self) if f.name != "method"))
        if self.method is Method.qlora:
            self._refuse("the base is held in 4 bits", "base_precision")
        if self.method is Method.pissa:
            self._refuse("it takes matrices apart, and bf16 would round what is left of them", "base_precision")

    def _refuse(self, why: str, *unused: str) -> None:
        refuse_unused(self, "lora", unused, f"is not for lora.method={self.method.name}: {why}. Leave it out.")
