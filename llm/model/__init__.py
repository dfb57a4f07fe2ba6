"""A causal language model from its config or its folder, in Hugging Face format, plain or with LoRA adapters.

build.py      a config -> the Hugging Face config of the architecture that it names, and the model
pretrained.py a folder -> its config, its model, an adapter; nothing that it brings is run
lora.py       a frozen base -> the same model with low-rank adapters to train, and the two as one again
attention.py  where documents begin -> attention within each, without a mask
loss.py       the next-token loss, compiled or not
generation.py prompts -> text, piece by piece or many at once, each prompt drawn by its own seed
"""

from llm.model.attention import checkpoint_blocks, document_bounds
from llm.model.build import (
    build,
    check_architecture,
    check_tokenizer,
    count_base_parameters,
    count_parameters,
    digest_of_folder,
    save,
    with_settings_of_folder,
)
from llm.model.generation import Answer, generate, stream
from llm.model.lora import add_lora, expert_tensors, merge, save_adapter, targets
from llm.model.loss import EAGER, compiled, next_token_loss, next_token_nats, require_isolation
from llm.model.pretrained import grow, load, open_config, outline, padding_of, read_config

__all__ = [
    "EAGER",
    "Answer",
    "add_lora",
    "build",
    "check_architecture",
    "check_tokenizer",
    "checkpoint_blocks",
    "compiled",
    "count_base_parameters",
    "count_parameters",
    "digest_of_folder",
    "document_bounds",
    "expert_tensors",
    "generate",
    "grow",
    "load",
    "merge",
    "next_token_loss",
    "next_token_nats",
    "open_config",
    "outline",
    "padding_of",
    "read_config",
    "require_isolation",
    "save",
    "save_adapter",
    "stream",
    "targets",
    "with_settings_of_folder",
]
