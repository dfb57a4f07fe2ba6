"""A run's tokenizer -> the files that transformers wants, so that a text begins as the documents did in training."""

import json
import shutil
from pathlib import Path
from typing import Any

from llm.run.files import write_json
from llm.tokenizer import Special

CHAT_TEMPLATE = "chat_template.jinja"


def write_tokenizer(source: Path, folder: Path, special: Special, *, positions: int) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template of a run, for use without it.

    In training the packer puts the beginning-of-document token before a text; here the tokenizer does, for nobody else
    would. A chat template has it already, and is encoded without what a tokenizer adds.
    """
    state = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    begins = config["bos_token"]
    write_json(folder / "tokenizer.json", state | {"post_processor": _begin_with(begins, special.bos_id)})
    write_json(folder / "tokenizer_config.json", config | {"model_max_length": positions})
    if (source / CHAT_TEMPLATE).is_file():
        shutil.copyfile(source / CHAT_TEMPLATE, folder / CHAT_TEMPLATE)


def _begin_with(token: str, token_id: int) -> dict[str, Any]:
    """A post-processor, as tokenizer.json has it, that puts one token before a text."""
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, second],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
