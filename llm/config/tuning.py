"""The schema of a tuning: which weights of a base are trained, and in which precision the rest is held."""

from dataclasses import dataclass
from enum import Enum

from llm.config.fields import check_settings, setting

ALL_LINEAR = "all-linear"  # of lora.target_modules: every linear layer that the model itself has


class Method(Enum):
    lora = "lora"  # Hu et al. 2021, arXiv:2106.09685
    rslora = "rslora"  # scaled by alpha / sqrt(rank): Kalajdzievski 2023, arXiv:2312.03732
    dora = "dora"  # the size of each column apart from its direction: Liu et al. 2024, arXiv:2402.09353
    pissa = "pissa"  # begins from the largest singular values: Meng et al. 2024, arXiv:2404.02948
    qlora = "qlora"  # on a base in 4 bits: Dettmers et al. 2023, arXiv:2305.14314
    full = "full"  # no adapter: every weight


def _no_layers(names: list[str]) -> str | None:
    return None if names else "is empty. Name layers, or set it to null for every linear layer."


OF_ADAPTERS = ("method", tuple(method for method in Method if method is not Method.full))


class WeightPrecision(Enum):
    fp32 = "float32"
    bf16 = "bfloat16"


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters on the linear layers of a frozen base, or every weight of it."""

    method: Method = Method.lora
    rank: int = setting(8, at_least=1, only_with=OF_ADAPTERS)
    alpha: int = setting(16, at_least=1, only_with=OF_ADAPTERS)  # the update is scaled by alpha / rank
    dropout: float = setting(0.0, at_least=0, below=1, only_with=OF_ADAPTERS)
    # None: every linear layer but the head; or [all-linear]
    target_modules: list[str] | None = setting(None, only_with=OF_ADAPTERS, fault=_no_layers)
    # of the frozen weights while training; those of qlora have 4 bits, and pissa takes matrices apart, of whose rest
    # bf16 would round
    base_precision: WeightPrecision = setting(
        WeightPrecision.fp32, only_with=("method", (Method.lora, Method.rslora, Method.dora))
    )
    # of the adapter's weights, and so of their moments
    precision: WeightPrecision = setting(WeightPrecision.fp32, only_with=OF_ADAPTERS)

    def __post_init__(self) -> None:
        check_settings(self, "lora")
