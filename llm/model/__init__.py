"""A causal language model from its config or its folder, in Hugging Face format, plain or with LoRA adapters.

build.py      a config -> the Hugging Face config of the architecture that it names, and the model
pretrained.py a folder <-> a model and the low-rank adapters on it; nothing that a folder brings is run
attention.py  where documents begin -> attention within each, without a mask
half.py       what autocast leaves in fp32, in its half precision
loss.py       the next-token loss, compiled or not
generation.py prompts -> text, piece by piece or many at once, each prompt drawn by its own seed
"""

from llm.model.attention import checkpoint_blocks as checkpoint_blocks
from llm.model.attention import document_bounds as document_bounds
from llm.model.build import build as build
from llm.model.build import check_architecture as check_architecture
from llm.model.build import check_tokenizer as check_tokenizer
from llm.model.build import count_base_parameters as count_base_parameters
from llm.model.build import count_parameters as count_parameters
from llm.model.build import digest_of_folder as digest_of_folder
from llm.model.build import flops_per_token as flops_per_token
from llm.model.build import save as save
from llm.model.build import with_settings_of_folder as with_settings_of_folder
from llm.model.generation import Answer as Answer
from llm.model.generation import generate as generate
from llm.model.generation import stream as stream
from llm.model.half import blocks_of as blocks_of
from llm.model.half import halve_experts as halve_experts
from llm.model.half import halve_residual as halve_residual
from llm.model.loss import EAGER as EAGER
from llm.model.loss import compiled as compiled
from llm.model.loss import next_token_loss as next_token_loss
from llm.model.loss import next_token_nats as next_token_nats
from llm.model.loss import require_isolation as require_isolation
from llm.model.pretrained import add_lora as add_lora
from llm.model.pretrained import expert_tensors as expert_tensors
from llm.model.pretrained import grow as grow
from llm.model.pretrained import load as load
from llm.model.pretrained import merge as merge
from llm.model.pretrained import open_config as open_config
from llm.model.pretrained import outline as outline
from llm.model.pretrained import padding_of as padding_of
from llm.model.pretrained import read_config as read_config
from llm.model.pretrained import save_adapter as save_adapter
from llm.model.pretrained import save_merged as save_merged
from llm.model.pretrained import targets as targets
from llm.model.pretrained import train_only as train_only
