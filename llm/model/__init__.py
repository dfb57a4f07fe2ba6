"""A causal language model from its config or its folder, in Hugging Face format, plain or with LoRA adapters.

architectures.py  a config <-> the Hugging Face config of the architecture that it names
pretrained.py a folder that is there already -> its config and digest, checked; its model for a tokenizer
loading.py    a folder -> its config, its model, an adapter; nothing that it brings is run
build.py      config -> a model with random weights; a folder -> the model in it
lora.py       a frozen base -> the same model with low-rank adapters to train, and the two as one again
vocabulary.py a model and new tokens -> the model with a row for each; padding of the vocabulary
attention.py  where documents begin -> attention within each, without a mask
loss.py       the next-token loss, compiled or not
isolation.py  documents that share a row do not see each other
generation.py prompts -> text, piece by piece or many at once, each prompt drawn by its own seed
"""

from llm.model.architectures import check_architecture
from llm.model.attention import document_bounds
from llm.model.build import begin, build, count_base_parameters, count_parameters, load, load_for_use, save
from llm.model.generation import Answer, generate, steps, stream
from llm.model.isolation import require_isolation
from llm.model.loading import load_adapter, new_model, open_config, open_model
from llm.model.lora import add_lora, expert_tensors, merge, save_adapter, targets
from llm.model.loss import EAGER, compiled, next_token_loss, next_token_nats
from llm.model.pretrained import check_tokenizer, digest_of_model, folder_of_model, read_config, with_settings_of_folder
from llm.model.vocabulary import grow, padding_of

__all__ = [
    "EAGER",
    "Answer",
    "add_lora",
    "begin",
    "build",
    "check_architecture",
    "check_tokenizer",
    "compiled",
    "count_base_parameters",
    "count_parameters",
    "digest_of_model",
    "document_bounds",
    "expert_tensors",
    "folder_of_model",
    "generate",
    "grow",
    "load",
    "load_adapter",
    "load_for_use",
    "merge",
    "new_model",
    "next_token_loss",
    "next_token_nats",
    "open_config",
    "open_model",
    "padding_of",
    "read_config",
    "require_isolation",
    "save",
    "save_adapter",
    "steps",
    "stream",
    "targets",
    "with_settings_of_folder",
]
