"""A pretrained run and conversations -> a LoRA adapter in PEFT format."""

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llm import tokenizer
from llm.config import LINEAR_LAYERS, Architecture, FinetuneStage, require_one_graph
from llm.data import Conversation, ConversationRows, Corpus, Rows, encode_conversations, open_corpus
from llm.errors import ConfigError, DataError
from llm.run import (
    NOT_MINE,
    Outcome,
    Plan,
    Run,
    check_files,
    digest_of,
    find,
    log,
    make,
    require_devices,
    sha256_of,
    with_precision,
)  # fmt: skip
from llm.stage import corpus_notes
from llm.stage._training import train

FORMAT_VERSION = 2
SAMPLES = 3  # held-out questions that are answered at each validation: the first that fit on a screen, if there are
SAMPLE_CHARACTERS = 160


def run(config: FinetuneStage) -> Run:
    """The finished fine-tuning run of a config."""
    base = find(config.outputs, "pretrain", config.base)
    _check_against_base(config, base)
    check_files(base, under="model/")
    require_devices(config.trainer)
    config = replace(config, trainer=with_precision(config.trainer))
    if config.trainer.compile:
        from llm.trainer import require_compiler

        require_compiler(config.trainer)
    corpus = open_corpus(config.data)
    plan = Plan(
        config=config,
        default_name=f"{base.record['name']}-{config.data.name}",
        format_version=FORMAT_VERSION,
        parents={"base": base.digest, "data": corpus.digest()},
        folders={"base": str(base.path)},
    )
    return make(plan, lambda run: _train(run, config, base, corpus))


def _train(run: Run, config: FinetuneStage, base: Run, corpus: Corpus) -> Outcome:
    import torch  # these take seconds, which a run that is already finished need not wait for

    from llm import model as models

    folder = base.path / "model"
    special = tokenizer.special(folder)
    corpus.keep_left_out(run.path)
    rows, prompts, dropped = _read(config, corpus, folder, special)
    torch.manual_seed(config.seed)
    base_model = models.load(folder)
    model = models.add_lora(base_model, config.lora, Architecture[base.config["model"]["architecture"]])
    model.peft_config["default"].base_model_name_or_path = str(folder)
    trainable, total = models.count_parameters(model, trainable=True), models.count_parameters(model)
    log.info("LoRA: %d of %d parameters are trained (%.2f %%)", trainable, total, 100 * trainable / total)
    results = train(
        run,
        config,
        model=model,
        model_config=base_model.config,
        rows=rows,
        tokenizer_folder=folder,
        prompts=prompts,
        save=model.save_pretrained,
        save_as="adapter",
        facts={
            "parameters": total,
            "trainable_parameters": trainable,
            "train_records": len(rows["train"]),
            "held_out_records": len(rows["held_out"]),
        },
    )
    if results is None:
        return NOT_MINE
    adapter = [sha256_of(run.path / "adapter" / name) for name in ("adapter_model.safetensors", "adapter_config.json")]
    return Outcome(
        results=results,
        digest=digest_of(adapter),
        notes=corpus_notes(corpus) | {"dropped_after_encoding": dropped},
        objective=results["val/loss"],
    )


def _read(
    config: FinetuneStage, corpus: Corpus, folder: Path, special: tokenizer.Special
) -> tuple[dict[str, Rows], list[tuple[str, list[int]]], dict[str, int]]:
    """(rows of both splits, the first held-out questions with their token ids, what was dropped by reason)."""
    chat = tokenizer.load_chat(folder)
    conversations: dict[str, list[Conversation]] = {"train": [], "held_out": []}
    for is_held_out, record in corpus.split_records():
        if isinstance(record, Conversation):
            conversations["held_out" if is_held_out else "train"].append(record)
    rows: dict[str, Rows] = {}
    dropped: dict[str, int] = {}
    for split, records in conversations.items():
        encoded, counts = encode_conversations(records, chat, special, sequence_length=config.data.sequence_length)
        if not encoded:
            raise DataError(
                f"data={config.data.name}: every {split} conversation is longer than data.sequence_length="
                f"{config.data.sequence_length} tokens. Raise it."
            )
        for reason, times in counts.items():
            log.warning("data=%s: dropped %d %s conversations: %s", config.data.name, times, split, reason)
            dropped[f"{split}: {reason}"] = times
        rows[split] = ConversationRows(encoded, pad_id=special.pad_id)
    questions = [c.messages[:-1] for c in sorted(conversations["held_out"], key=_is_long)[:SAMPLES]]
    ids = [chat.apply_chat_template(q, tokenize=True, return_dict=True)["input_ids"] for q in questions]
    return rows, [(q[-1]["content"], list(line)) for q, line in zip(questions, ids, strict=True)], dropped


def _is_long(conversation: Conversation) -> bool:
    return sum(len(message["content"]) for message in conversation.messages[:-1]) > SAMPLE_CHARACTERS


def _check_against_base(config: FinetuneStage, base: Run) -> None:
    """Refuse, before any work, what this base cannot do."""
    made: dict[str, Any] = base.config
    require_one_graph(architecture := Architecture[made["model"]["architecture"]], config.trainer)
    layers = LINEAR_LAYERS[architecture]
    for name in config.lora.target_modules or []:
        if name not in layers:
            close = get_close_matches(name, layers, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"It has: {', '.join(layers)}."
            raise ConfigError(f"lora.target_modules: {base.path.name} has no layer {name}. {hint}")
    positions = made["model"]["max_position_embeddings"]
    learned = made["model"]["architecture"] == Architecture.gpt2.name
    longest = made["data"]["sequence_length"] if learned else positions
    if config.data.sequence_length > longest:
        why = "learned no position past that" if learned else "has no position past that"
        raise ConfigError(
            f"data.sequence_length={config.data.sequence_length} is longer than {longest}: {base.path.name} {why}. "
            f"Set data.sequence_length={longest} or less."
        )
