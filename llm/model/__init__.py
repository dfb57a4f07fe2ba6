"""A causal language model from its config or its folder, in Hugging Face format, plain or with LoRA adapters.

architectures.py  config -> the Hugging Face config of its architecture
build.py      config -> a model with random weights; a folder -> the model in it
lora.py       a frozen base -> the same model with low-rank adapters to train
attention.py  where documents begin -> attention within each, without a mask
loss.py       the next-token loss, compiled or not
isolation.py  documents that share a row do not see each other
generation.py a prompt -> text, piece by piece
"""

from llm.model.architectures import check_extra
from llm.model.attention import document_bounds
from llm.model.build import build, count_parameters, load, save
from llm.model.generation import Sampling, generate, stream
from llm.model.isolation import require_isolation
from llm.model.lora import add_lora, load_adapter
from llm.model.loss import compiled, next_token_loss, next_token_nats

__all__ = [
    "Sampling",
    "add_lora",
    "build",
    "check_extra",
    "compiled",
    "count_parameters",
    "document_bounds",
    "generate",
    "load",
    "load_adapter",
    "next_token_loss",
    "next_token_nats",
    "require_isolation",
    "save",
    "stream",
]
