"""A fine-tuning's config and its base -> one line, before any work, of what that base cannot do."""

from difflib import get_close_matches
from importlib.util import find_spec

from llm.config.stages import FinetuneStage
from llm.config.tuning import ALL_LINEAR, Method
from llm.errors import ConfigError
from llm.run.models import Model, find_model


def find_base(outputs: str, named: str) -> Model:
    """The whole model that `base` names: of a finished pretraining, of a folder in Hugging Face format, or of the hub.

    Raises:
        ConfigError: there is no such run or folder, or several; or what lies there is no model that can be tuned.
        DamagedError: a file of a folder is missing or cannot be read.
    """
    base = find_model(outputs, named, key="base", stages=("pretrain",))
    if base.adapter:
        raise ConfigError(f"base={named} holds an adapter, not a model. Name the run or the folder that it is for.")
    return base


def check_against_base(config: FinetuneStage, base: Model) -> None:
    """Refuse what this base cannot do."""
    if config.lora.method is Method.qlora:
        _require_four_bits()
    if not base.run:
        from llm.tokenizer import require_chat

        require_chat(base.weights, template=config.chat_template)
    if not base.run or config.lora.target_modules:
        _check_targets(config, base)
    _check_length(config, base)


def _check_targets(config: FinetuneStage, base: Model) -> None:
    """Refuse layers that are not there, and what PEFT has no way to do on a tensor that is no layer."""
    from llm.model import expert_tensors, outline, targets  # takes seconds: only where there is something to check

    model, lora = outline(base.weights, key="base"), config.lora
    known, wanted = [*targets(model), ALL_LINEAR], lora.target_modules or []
    for name in wanted:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"It has: {', '.join(known)}."
            raise ConfigError(f"lora.target_modules: {base.path.name} has no layer {name}. {hint}")
    tensors = {name.rpartition(".")[2] for name in expert_tensors(model)}
    needs_layers = lora.dropout or lora.method in (Method.dora, Method.pissa)
    if needs_layers and tensors and {ALL_LINEAR, *tensors} & set(wanted):
        raise ConfigError(
            f"lora.target_modules: lora.method={lora.method.value} with lora.dropout={lora.dropout} is not for the "
            f"tensors of experts ({', '.join(sorted(tensors))}). Name other layers, or set lora.method=lora and "
            "lora.dropout=0."
        )


def _check_length(config: FinetuneStage, base: Model) -> None:
    if config.data.sequence_length > base.positions:
        raise ConfigError(
            f"data.sequence_length={config.data.sequence_length} is longer than {base.positions}, all that "
            f"{base.path.name} can read. Set data.sequence_length={base.positions} or less."
        )


def _require_four_bits() -> None:
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "lora.method=qlora holds the base in 4 bits through bitsandbytes, which is not installed. Install the "
            "extra: pip install -e '.[qlora]', or set lora.method=lora."
        )
    import torch  # takes seconds

    if not torch.cuda.is_available():
        import bitsandbytes

        if "cpu" not in getattr(bitsandbytes, "supported_torch_devices", ()):
            raise ConfigError(
                f"lora.method=qlora is for a GPU under bitsandbytes {bitsandbytes.__version__}, and torch sees none "
                "here. Set lora.method=lora."
            )
