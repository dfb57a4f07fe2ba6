"""A base and conversations -> a LoRA adapter in PEFT format, or the whole model, tuned."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from llm.config.data import Packing
from llm.config.stages import FinetuneStage
from llm.config.tuning import ALL_LINEAR, Method
from llm.data.conversations import ConversationRows, Encoded, encode_conversations, show_trained
from llm.data.corpus import Corpus, open_corpus
from llm.data.records import Conversation
from llm.environment import process_rank
from llm.errors import ConfigError, DataError, nearest
from llm.run.console import log
from llm.run.files import digest_of
from llm.run.making import Outcome, Plan
from llm.run.models import Model, digest_in, find_model
from llm.run.runs import Run
from llm.stage import Runs, Stage
from llm.stage.training import measured_names, model_digest, prompts_of, train
from llm.tokenizer.chat import check_template, read_template
from llm.tokenizer.folder import Special, convert_tokenizer, load_chat, load_tokenizer, read_special, save_with_template

FORMAT_VERSION = 5
SAMPLES = 3  # held-out questions that are answered at each validation: the first that fit on a screen, if there are
SAMPLE_CHARACTERS = 160
SHOWN_CHARACTERS = 300  # of each end of a conversation in the log
SHOWN = 2  # conversations that the log shows as the model is given them
BYTES = 4  # of a weight, or of a moment of AdamW's, in fp32


def plan(config: FinetuneStage, parents: Runs) -> Plan:
    base = find_base(config.outputs, config.base)
    check_against_base(config, base)
    base.check()
    template = read_template(config.chat_template) if config.chat_template is not None else None
    corpus = open_corpus(config.data)
    of_template = {"chat_template": digest_of([template])} if template is not None else {}

    def prepare(folder: Path) -> None:
        if base.run is None:
            convert_tokenizer(base.weights, folder / "tokenizer", key=f"base={base.weights}")

    def work(run: Run) -> Outcome | None:
        with _chat_tokenizer(run, base, template, str(config.chat_template)) as (folder, new_ids):
            return _train(run, config, base, corpus, folder, new_ids)

    return Plan(
        config=config,
        default_name=f"{base.name}-{config.data.name}",
        format_version=FORMAT_VERSION,
        parents={"base": base.digest, "data": corpus.digest()} | of_template,
        folders={"base": str(base.path)},
        prepare=prepare,
        work=work,
        logs=True,
    )


@contextmanager
def _chat_tokenizer(run: Run, base: Model, template: str | None, name: str) -> Iterator[tuple[Path, list[int]]]:
    """(the folder of the tokenizer to train with, the ids of the tokens that the base's lacks)."""
    own = base.weights if base.run else run.path / "tokenizer"  # rank zero has put it there
    if template is None:
        check_template(load_chat(own), name=str(base.path))
        yield own, []
        return
    with tempfile.TemporaryDirectory(prefix="ttukttak-") as folder:
        new_ids = save_with_template(own, template, Path(folder), name=f"chat_template={name}")
        if new_ids:
            log.info("chat_template=%s: %d new tokens, whose embeddings are trained", name, len(new_ids))
        yield Path(folder), new_ids


def _train(
    run: Run, config: FinetuneStage, base: Model, corpus: Corpus, tokenizer_folder: Path, new_ids: list[int]
) -> Outcome | None:
    import torch  # these take seconds, which a run that is already finished need not wait for

    from llm import model as models
    from llm.trainer.fit import require_rows

    special = read_special(tokenizer_folder)
    vocab_size = load_tokenizer(tokenizer_folder).get_vocab_size()
    if process_rank() == 0:
        corpus.keep_left_out(run.path)
    rows, prompts, dropped = _read(config, corpus, tokenizer_folder, special)
    require_rows(rows["train"], config.trainer)
    torch.manual_seed(config.seed)
    loaded = models.load(base.weights, tuning=config.lora)
    models.grow(loaded, max(new_ids, default=-1) + 1, new_ids)
    if config.data.packing is Packing.best_fit:
        models.require_isolation(loaded, vocab_size=vocab_size, architecture=loaded.config.model_type)
    is_full, model = config.lora.method is Method.full, cast(Any, loaded)
    if not is_full:
        model = models.add_lora(loaded, config.lora, new_token_ids=new_ids)
        model.peft_config["default"].base_model_name_or_path = str(base.weights)
    results = train(
        run,
        config,
        model=model,
        rows={**rows},
        tokenizer_folder=tokenizer_folder,
        prompts=prompts,
        save=partial(models.save if is_full else models.save_adapter, model),
        save_as="model" if is_full else "adapter",
        facts=_sizes(model, config) | {f"{split}_records": rows[split].num_conversations for split in rows},
    )
    if results is None:
        return None
    if is_full:
        digest = model_digest(run.path / "model")
    else:
        digest = digest_in(run.path / "adapter")
        results["adapter_bytes"] = (run.path / "adapter" / "adapter_model.safetensors").stat().st_size
    notes = corpus.notes() | {"dropped_after_encoding": dropped, "positions": base.positions}
    return Outcome(results=results, digest=digest, notes=notes, objective=results["val/loss"])


def _sizes(model: Any, config: FinetuneStage) -> dict[str, Any]:
    """What is trained and what AdamW keeps of it, beside what full fine-tuning would."""
    from llm import model as models

    trainable, total = models.count_parameters(model, trainable=True), models.count_parameters(model)
    share = 100 * trainable / total
    log.info("%s: %d of %d parameters are trained (%.2f %%)", config.lora.method.value, trainable, total, share)
    facts: dict[str, Any] = {"parameters": total, "trainable_parameters": trainable}
    if config.lora.method is Method.full:
        return facts
    moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    of_full = BYTES * models.count_base_parameters(model)
    return facts | {"optimizer_bytes": moments, "optimizer_bytes_full": 2 * of_full, "model_bytes": of_full}


def _read(
    config: FinetuneStage, corpus: Corpus, folder: Path, special: Special
) -> tuple[dict[str, ConversationRows], list[tuple[str, list[int]]], dict[str, int]]:
    """(rows of both splits, the first held-out questions with their token ids, what was dropped by reason)."""
    chat = load_chat(folder)
    conversations: dict[str, list[Conversation]] = {"train": [], "held_out": []}
    for is_held_out, record in corpus.split_records():
        if isinstance(record, Conversation):
            conversations["held_out" if is_held_out else "train"].append(record)
    rows: dict[str, ConversationRows] = {}
    dropped: dict[str, int] = {}
    for split, records in conversations.items():
        encoded, counts = encode_conversations(
            records, chat, sequence_length=config.data.sequence_length, overlong=config.data.overlong
        )
        if not encoded:
            raise DataError(
                f"data={config.data.name}: every {split} conversation is longer than data.sequence_length="
                f"{config.data.sequence_length} tokens. Raise it."
            )
        for reason, times in counts.items():
            log.warning("data=%s: %d %s conversations left out or cut: %s", config.data.name, times, split, reason)
            dropped[f"{split}: {reason}"] = times
        made = rows[split] = ConversationRows(
            encoded,
            pad_id=special.pad_id,
            packing=config.data.packing,
            sequence_length=config.data.sequence_length,
        )
        if split == "train":
            _say_rows(config, encoded, made, chat)
    questions = [c.messages[:-1] for c in sorted(conversations["held_out"], key=_is_long)[:SAMPLES]]
    return rows, prompts_of(folder, questions), dropped


def _say_rows(config: FinetuneStage, encoded: list[Encoded], rows: ConversationRows, chat: Any) -> None:
    """Log what the rows cost, and what the first conversations look like to the model."""
    at_once = config.trainer.micro_batch_size or config.data.batch_size
    padding = 100 * rows.padding_share(at_once)
    said = "%d conversations in %d rows (data.packing=%s), about %.0f %% of the positions padding"
    log.info(said, len(encoded), len(rows), config.data.packing.value, padding)
    for conversation in encoded[:SHOWN]:
        text = show_trained(conversation, chat)
        if len(text) > 2 * SHOWN_CHARACTERS:
            text = f"{text[:SHOWN_CHARACTERS]} ... {text[-SHOWN_CHARACTERS:]}"
        log.info("what is trained is in ⟦ ⟧: %s: %s", conversation.origin, text)


def _is_long(conversation: Conversation) -> bool:
    return sum(len(message["content"]) for message in conversation.messages[:-1]) > SAMPLE_CHARACTERS


def outline(config: FinetuneStage, parents: Runs) -> Any:
    """The base as it is to be trained, on the meta device."""
    import torch

    from llm import model as models

    tuning = config.lora
    if tuning.method in (Method.pissa, Method.qlora):  # begun, or held, in a way that no shape shows
        tuning = replace(tuning, method=Method.lora)
    base = find_base(config.outputs, config.base)
    model = models.outline(base.weights, key="base").to(getattr(torch, tuning.base_precision.value))
    with torch.device("meta"):
        return model if tuning.method is Method.full else models.add_lora(model, tuning)


def result_names(config: FinetuneStage) -> list[str]:
    """The numbers that a run has to show at its end, by name."""
    of_adapter = ["optimizer_bytes", "optimizer_bytes_full", "model_bytes", "adapter_bytes"]
    own = ["trainable_parameters", "train_records", "held_out_records"]
    return [*measured_names(config), *own, *([] if config.lora.method is Method.full else of_adapter)]


# What a base cannot do is refused before any work


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
        from llm.tokenizer.folder import require_chat

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
            hint = nearest(name, known, otherwise="It has:")
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


STAGE = Stage(
    plan=plan,
    result_names=result_names,
    outline=outline,
    loads=("llm.model", "llm.trainer.fit", "llm.logger.live", "peft"),
)
