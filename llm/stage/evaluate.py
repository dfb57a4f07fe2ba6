"""A run or any model's folder -> results.json: what it makes of held-out text, of conversations, and of tasks.

The text is what the run itself held out, so that none of it was learned from, or the held-out side of `data`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from llm import tokenizer
from llm.config.sampling import Sampling
from llm.config.stages import EvaluateStage
from llm.config.training import Accelerator
from llm.data import (
    Conversation,
    ConversationRows,
    EvaluationBatches,
    MixedRows,
    Rows,
    corpus_notes,
    encode_conversations,
)
from llm.data.mixed_shards import Sources, rows_of, sources_of
from llm.environment import process_rank
from llm.errors import ConfigError, DataError, DivergedError
from llm.run.console import console, log
from llm.run.files import TEMPORARY, digest_of, write_json, write_text
from llm.run.making import Outcome, Plan
from llm.run.models import Model
from llm.run.runs import Run, check_files
from llm.stage import Runs, Stage, Work
from llm.stage.estimate import Estimate
from llm.stage.evaluated import Evaluated, find_evaluated, held_out_of_text, task_parents
from llm.stage.report import MEASURED, flat, table
from llm.stage.training import prompts_of

if TYPE_CHECKING:
    from llm.evaluation import Scorer
    from llm.trainer.validation import Evaluation

PROBES = ("particles", "next_sentence", "word_order")
WRITTEN = (
    *("prompts", "left_out", "stop_rate", "stop_rate_low", "stop_rate_high", "tokens_mean"),
    *("repeated_4grams", "distinct_1", "distinct_2", "hangul_share", "broken_share", "empty_share"),
)
FORMAT_VERSION = 5
WRITTEN_AT_ONCE = 20  # prompts


def plan(config: EvaluateStage, parents: Runs) -> Work:
    evaluated = find_evaluated(config)
    if config.evaluation.tasks:
        from llm.evaluation.tasks import require_tasks  # lm-eval takes seconds

        require_tasks(config.evaluation)
    return Work(
        plan=Plan(
            config=config,
            default_name=evaluated.model.name,
            format_version=FORMAT_VERSION,
            parents=evaluated.parents() | task_parents(config.evaluation),
            folders={n: str(of.path) for n, of in (("run", evaluated.model.run), ("shards", evaluated.shards)) if of},
        ),
        do=lambda run: _evaluate(run, config, evaluated),
        check=lambda run: _show(run, evaluated),
        waits=True,
    )


def estimate(config: EvaluateStage, parents: Runs) -> Estimate:
    shards = find_evaluated(config).shards
    return Estimate(tokens=shards.results["held_out"]["tokens"] if shards else None)


def result_names(config: EvaluateStage) -> list[str]:
    """The numbers that a run may have to show at its end, by name; `*` is for what the text or a task brings."""
    measured = [f"{group}/{name}" for group in ("val", "answers") for name in MEASURED]
    of_parts = [f"val/{name}/*" for name in MEASURED]
    probes = [f"probe/{name}{end}" for name in PROBES for end in ("", "_items", "_low", "_high", "/*")]
    writing = [f"writing/{name}" for name in WRITTEN]
    tasks = ["task/*"] if config.evaluation.tasks else []
    return [*measured, *of_parts, "answers/conversations", "answers/dropped", *probes, *writing, *tasks]


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """What an evaluation asks: the model, ready to score, and the held-out text and conversations."""

    run: Run
    config: EvaluateStage
    evaluated: Evaluated
    tokenizer_folder: Path
    scorer: "Scorer"
    sources: Sources
    documents: list[str]
    conversations: list[Conversation]


def _evaluate(run: Run, config: EvaluateStage, evaluated: Evaluated) -> Outcome:
    with TemporaryDirectory(dir=run.path, prefix=TEMPORARY) as scratch:
        opened = _open(run, config, evaluated, Path(scratch))
        results = {
            "run": evaluated.note(),
            "seed": config.seed,
            **_text(opened),
            **_answers(opened),
            **_probes(opened),
            "writing": _write(opened),
            **_tasks(opened),
        }
    write_json(run.path / "results.json", results)
    objective = results["answers"]["loss"] if evaluated.chats else results.get("text", {}).get("bits_per_byte")
    of_text = (
        {"text": {name: corpus_notes(corpus) for name, corpus in evaluated.texts.items()}} if evaluated.text else {}
    )
    notes = of_text | {"evaluated": results["run"]}
    return Outcome(results=flat(results), digest=digest_of(results), objective=objective, notes=notes)


def _open(run: Run, config: EvaluateStage, evaluated: Evaluated, scratch: Path) -> _Opened:
    from llm.evaluation import held_out_documents  # takes seconds

    model = evaluated.model
    own = model.tokenizer  # as our runs have it, whosever it is
    folder = own if model.run else tokenizer.convert(own, scratch / "tokenizer", key=f"run={model.path}")
    scorer = _open_scorer(config, model, folder)
    sources: Sources = {}
    if evaluated.shards:
        sources = sources_of(evaluated.shards)
    elif evaluated.text:
        for corpus in evaluated.texts.values() if len(evaluated.texts) == 1 else ():
            corpus.keep_left_out(run.path)
        sources = held_out_of_text(evaluated.texts, folder, scratch, num_workers=evaluated.text.num_workers)
    else:
        log.warning(
            "no text is known that %s has not learned from: bits per byte and probes are left out. Give data=text "
            "data.path=<files> for them",
            model.name,
        )
    records = evaluated.conversations.records(held_out=True) if evaluated.conversations else ()
    return _Opened(
        run=run,
        config=config,
        evaluated=evaluated,
        tokenizer_folder=folder,
        scorer=scorer,
        sources=sources,
        documents=held_out_documents(sources.values(), scorer.tokenizer, seed=config.seed),
        conversations=[record for record in records if isinstance(record, Conversation)],
    )


def _open_scorer(config: EvaluateStage, model: Model, folder: Path) -> "Scorer":
    import torch

    from llm import model as models
    from llm.evaluation import Scorer

    loaded = models.load_for_use(model)
    loaded.config.pad_token_id = None  # else transformers warns of padding without a mask, which on the right none sees
    vocabulary = tokenizer.load(folder)
    if (rows := loaded.get_input_embeddings().weight.shape[0]) < (tokens := vocabulary.get_vocab_size()):
        raise ConfigError(f"run={model.path}: {rows} embeddings for {tokens} tokens. Put its own tokenizer there.")
    models.require_isolation(loaded, vocab_size=tokens, architecture=loaded.config.model_type)
    on_gpu = config.evaluation.accelerator is not Accelerator.cpu and torch.cuda.is_available()
    return Scorer(
        loaded.to("cuda" if on_gpu else "cpu"),
        vocabulary,
        tokenizer.special(folder),
        positions=model.positions,
        batch_tokens=config.evaluation.batch_tokens,
    )


def _text(opened: _Opened) -> dict[str, Any]:
    """Loss and bits per byte, of each part of a mixture too; nothing where no text is known."""
    if not opened.sources:
        return {}
    rows = rows_of(opened.sources, "held_out", sequence_length=opened.evaluated.sequence_length)
    found = _loss(opened, rows, rows.sequence_length)
    whole, of_parts = _numbers(found, rows), rows.parts if isinstance(rows, MixedRows) else {}
    parts = {name: _numbers(part, of_parts[name]) for name, part in found.parts.items()}
    for name, part in {"text": whole, **parts}.items():
        log.info("held-out %s: %.4f nats per token, %.4f bits per byte", name, part["loss"], part["bits_per_byte"])
    return {"text": whole | ({"parts": parts} if parts else {})}


def _numbers(found: "Evaluation", rows: Rows) -> dict[str, Any]:
    measured = {"loss": found.loss, "bits_per_byte": found.bits_per_byte}
    return measured | {"raw_bytes": rows.raw_bytes, "lost_bytes": rows.lost_bytes}


def _answers(opened: _Opened) -> dict[str, Any]:
    """The loss of held-out answers; nothing where no conversations are known."""
    if (chats := opened.evaluated.chats) is None:
        return {}
    length, conversations = chats.sequence_length, opened.conversations
    chat = tokenizer.load_chat(opened.tokenizer_folder)
    encoded, dropped = encode_conversations(conversations, chat, sequence_length=length, overlong=chats.overlong)
    if not encoded:
        raise DataError(f"data={chats.name}: no held-out conversation fits data.sequence_length={length}.")
    for reason, times in dropped.items():
        log.warning("%d held-out conversations left out or cut: %s", times, reason)
    rows = ConversationRows(encoded, pad_id=opened.scorer.special.pad_id, sequence_length=length)
    found = _loss(opened, rows, length)
    log.info("held-out answers: %.4f nats per token", found.loss)
    counts = {"conversations": len(encoded), "dropped": len(conversations) - len(encoded)}
    return {"answers": {"loss": found.loss, "bits_per_byte": found.bits_per_byte} | counts}


def _loss(opened: _Opened, rows: Rows, sequence_length: int) -> "Evaluation":
    """What training validates."""
    from torch.utils.data import DataLoader

    from llm.trainer.validation import evaluate

    batch_size = max(1, opened.config.evaluation.batch_tokens // sequence_length)
    edges = rows.first_rows if isinstance(rows, MixedRows) else (0,)
    batches: Any = EvaluationBatches(rows.num_labels, batch_size=batch_size, edges=edges)
    loader = DataLoader[Any](rows, batch_sampler=batches, collate_fn=_same)  # type: ignore[arg-type]  # __getitems__
    model = opened.scorer.model
    found = evaluate(model, loader, rows, device=next(model.parameters()).device)
    if not isfinite(found.loss):
        raise DivergedError(f"the held-out loss of this model is {found.loss}. Train it again with a lower rate.")
    return found


def _same(batch: Any) -> Any:
    return batch


def _probes(opened: _Opened) -> dict[str, Any]:
    from llm.evaluation import make_items, measure

    number, documents = opened.config.evaluation.num_items, opened.documents
    items = make_items(documents, opened.scorer, num_items=number, seed=opened.config.seed)
    probes, asked = measure(items, opened.scorer)
    _write_lines(opened.run.path / "probes.jsonl", asked)
    for name, probe in probes.items():
        for reason, times in probe.left_out.items():
            log.warning("%s: left out %d items: %s", name, times, reason)
    if number and documents and (missing := [name for name in PROBES if name not in probes]):
        log.warning("the held-out text has nothing to ask about for %s", ", ".join(missing))
    return {
        "probes": {name: probe.as_json() for name, probe in probes.items()},
        "items_sha256": digest_of([item.choices for item in items.asked]),  # two runs with one were asked the same
    }


def _write(opened: _Opened) -> dict[str, Any]:
    """Statistics of what the model writes after prompts."""
    from llm.evaluation import Share, describe
    from llm.model import generate

    settings, scorer = opened.config.evaluation, opened.scorer
    if not settings.num_prompts:
        return {}
    new_tokens = settings.tokens_to_write(scorer.positions)
    room, prompts = scorer.positions - new_tokens, _prompts(opened)
    fitting = [(shown, ids) for shown, ids in prompts if len(ids) <= room][: settings.num_prompts]
    if left_out := sum(len(ids) > room for _, ids in prompts):
        log.warning("%d prompts are longer than %d tokens and are left out", left_out, room)
    if not fitting:
        log.warning("no held-out text makes a prompt: the model writes nothing")
        return {"prompts": 0, "left_out": left_out}
    written = generate(
        scorer.model,
        [ids for _, ids in fitting],
        scorer.tokenizer,
        sampling=Sampling(
            max_new_tokens=new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=0,
            repetition_penalty=1.0,
            seed=opened.config.seed,
        ),
        pad_id=scorer.special.pad_id,
        eos_ids=[scorer.special.eos_id],
        batch_size=WRITTEN_AT_ONCE,
    )
    lines = [
        {"prompt": shown, "text": each.text, "has_ended": each.end == "eos", "tokens": each.num_tokens}
        for (shown, _), each in zip(fitting, written, strict=True)
    ]
    _write_lines(opened.run.path / "generations.jsonl", lines)
    ended = Share(sum(each.end == "eos" for each in written), len(written))
    return {
        "prompts": len(written),
        "left_out": left_out,
        "stop_rate": ended.value,
        "stop_rate_low": ended.interval[0],
        "stop_rate_high": ended.interval[1],
        "tokens_mean": sum(each.num_tokens for each in written) / len(written),
        **describe([each.text for each in written]),
    }


def _prompts(opened: _Opened) -> list[tuple[str, list[int]]]:
    """What to go on from, with its token ids: held-out questions, or openings of held-out sentences."""
    if opened.evaluated.chats:
        return prompts_of(opened.tokenizer_folder, [each.messages[:-1] for each in opened.conversations])
    from llm.evaluation import openings

    texts = openings(opened.documents, opened.config.evaluation.num_prompts)
    return [(text, opened.scorer.encode(text)) for text in texts]


def _tasks(opened: _Opened) -> dict[str, Any]:
    """The metrics of each task, and whether its questions were put by the chat template."""
    config, folder = opened.config, opened.tokenizer_folder
    if not config.evaluation.tasks:
        return {"tasks": {}}
    from llm.evaluation.tasks import answer_tasks

    has_chat = uses_chat_template(config, opened.evaluated.model, folder)
    log.info("tasks are asked %s the chat template (evaluation.chat_template)", "by" if has_chat else "without")
    answered = answer_tasks(opened.scorer, folder, config.evaluation, has_chat=has_chat, seed=config.seed)
    return {"tasks": answered, "tasks_chat_template": has_chat}


def uses_chat_template(config: EvaluateStage, model: Model, folder: Path) -> bool:
    """As it is asked for; else of a tuned run, and of a folder that has a template. Every tokenizer of ours has one."""
    has_template = tokenizer.load_chat(folder).chat_template is not None
    if config.evaluation.chat_template is None:
        return has_template and (model.run is None or model.run.stage == "finetune")
    if config.evaluation.chat_template and not has_template:
        raise ConfigError("evaluation.chat_template=true, but the tokenizer has no chat template. Leave it out.")
    return config.evaluation.chat_template


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _show(made: Run, evaluated: Evaluated) -> None:
    """Its table, whether it was made now or before."""
    if process_rank() > 0:
        return
    check_files(made, under="results.json")
    results = json.loads((made.path / "results.json").read_text(encoding="utf-8"))
    console().print(table(results, title=evaluated.model.title))


STAGE = Stage(
    plan=plan,
    result_names=result_names,
    estimate=estimate,
    loads=("llm.model", "llm.trainer.validation", "llm.evaluation"),
)
