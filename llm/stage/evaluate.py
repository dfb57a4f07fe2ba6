"""A run or any model's folder -> results.json: what it makes of held-out text, of conversations, and of tasks.

The text is what the run itself held out, so that none of it was learned from, or the held-out side of `data`.
"""

import json
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from llm import tokenizer
from llm.config import Accelerator, EvaluateStage, Sampling
from llm.data import (
    Conversation,
    ConversationRows,
    EvaluationBatches,
    MixedRows,
    Rows,
    corpus_notes,
    encode_conversations,
)
from llm.errors import ConfigError, DataError, DivergedError
from llm.run import (
    TEMPORARY,
    Model,
    Outcome,
    Plan,
    Run,
    check_files,
    console,
    digest_of,
    log,
    process_rank,
    write_json,
    write_text,
)
from llm.stage import Runs, Stage, Work
from llm.stage.estimate import Estimate
from llm.stage.evaluated import (
    Evaluated,
    Sources,
    find_evaluated,
    held_out_of_shards,
    held_out_of_text,
    rows_of,
    task_parents,
)
from llm.stage.report import MEASURED, flat, table

if TYPE_CHECKING:
    from llm.evaluation import Probe, Scorer
    from llm.trainer import Evaluation

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


def _evaluate(run: Run, config: EvaluateStage, evaluated: Evaluated) -> Outcome:
    from llm.evaluation import held_out_documents  # takes seconds

    with TemporaryDirectory(dir=run.path, prefix=TEMPORARY) as scratch:
        folder = _tokenizer(evaluated.model, Path(scratch) / "tokenizer")
        scorer = _open_scorer(config, evaluated.model, folder)
        sources, notes = _sources(run, evaluated, folder, Path(scratch))
        documents = held_out_documents(sources.values(), scorer.words, seed=config.seed)
        conversations = _held_out_conversations(evaluated)
        results = {
            "run": evaluated.note(),
            "seed": config.seed,
            **({"text": _text(scorer, sources, evaluated, config)} if sources else {}),
            **({"answers": _answers(scorer, evaluated, folder, conversations, config)} if evaluated.chats else {}),
            **_probes(run, config, scorer, documents),
            "writing": _write(
                run, config, scorer, _prompts(evaluated, folder, scorer, documents, conversations, config)
            ),
            **_tasks(config, evaluated, folder, scorer),
        }
    write_json(run.path / "results.json", results)
    objective = results["answers"]["loss"] if evaluated.chats else results.get("text", {}).get("bits_per_byte")
    notes |= {"evaluated": results["run"]}
    return Outcome(results=flat(results), digest=digest_of(results), objective=objective, notes=notes)


def _tokenizer(model: Model, target: Path) -> Path:
    """The folder of the model's tokenizer: as our runs have it, whosever it is."""
    return model.tokenizer if model.run else tokenizer.adopt(model.tokenizer, target, key=f"run={model.path}")


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


def _sources(run: Run, evaluated: Evaluated, folder: Path, scratch: Path) -> tuple[Sources, dict[str, Any]]:
    """(held-out text by part, what was left out of it); none of a evaluated of which no text is known."""
    if evaluated.shards:
        return held_out_of_shards(evaluated.shards), {}
    if evaluated.text is None:
        log.warning(
            "no text is known that %s has not learned from: bits per byte and probes are left out. Give data=text "
            "data.path=<files> for them",
            evaluated.model.name,
        )
        return {}, {}
    for corpus in evaluated.texts.values() if len(evaluated.texts) == 1 else ():
        corpus.keep_left_out(run.path)
    sources = held_out_of_text(evaluated.texts, folder, scratch, num_workers=evaluated.text.num_workers)
    return sources, {"text": {name: corpus_notes(corpus) for name, corpus in evaluated.texts.items()}}


def _text(scorer: "Scorer", sources: Sources, evaluated: Evaluated, config: EvaluateStage) -> dict[str, Any]:
    """Loss and bits per byte, of each part of a mixture too."""
    rows = rows_of(sources, sequence_length=evaluated.sequence_length)
    found = _loss(scorer, rows, config.evaluation.batch_tokens // rows.sequence_length)
    of_parts = rows.parts if isinstance(rows, MixedRows) else {}
    parts = {name: _numbers(part, of_parts[name]) for name, part in found.parts.items()}
    for name, part in {"text": _numbers(found, rows), **parts}.items():
        log.info("held-out %s: %.4f nats per token, %.4f bits per byte", name, part["loss"], part["bits_per_byte"])
    return _numbers(found, rows) | ({"parts": parts} if parts else {})


def _numbers(found: "Evaluation", rows: Rows) -> dict[str, Any]:
    measured = {"loss": found.loss, "bits_per_byte": found.bits_per_byte}
    return measured | {"raw_bytes": rows.raw_bytes, "lost_bytes": rows.lost_bytes}


def _probes(run: Run, config: EvaluateStage, scorer: "Scorer", documents: list[str]) -> dict[str, Any]:
    from llm.evaluation import make_items, measure

    items = make_items(documents, scorer, num_items=config.evaluation.num_items, seed=config.seed)
    probes, asked = measure(items, scorer)
    _write_lines(run.path / "probes.jsonl", asked)
    if config.evaluation.num_items and documents:
        _say(probes)
    return {
        "probes": {name: probe.as_json() for name, probe in probes.items()},
        "items_sha256": digest_of([item.choices for item in items.asked]),  # two runs with one were asked the same
    }


def _loss(scorer: "Scorer", rows: Rows, rows_at_once: int) -> "Evaluation":
    """What training validates."""
    from torch.utils.data import DataLoader

    from llm import trainer

    edges = rows.first_rows if isinstance(rows, MixedRows) else (0,)
    batches: Any = EvaluationBatches(rows.num_labels, batch_size=max(1, rows_at_once), edges=edges)
    loader = DataLoader[Any](rows, batch_sampler=batches, collate_fn=_as_it_is)  # type: ignore[arg-type]  # __getitems__
    device = next(scorer.model.parameters()).device
    found = trainer.evaluate(scorer.model, loader, rows, device=device)
    if not isfinite(found.loss):
        raise DivergedError(f"the held-out loss of this model is {found.loss}. Train it again with a lower rate.")
    return found


def _as_it_is(batch: Any) -> Any:
    return batch


def _held_out_conversations(evaluated: Evaluated) -> list[Conversation]:
    records = evaluated.conversations.records(held_out=True) if evaluated.conversations else ()
    return [record for record in records if isinstance(record, Conversation)]


def _answers(
    scorer: "Scorer",
    evaluated: Evaluated,
    folder: Path,
    conversations: list[Conversation],
    config: EvaluateStage,
) -> dict[str, Any]:
    assert evaluated.chats is not None
    length = evaluated.chats.sequence_length
    chat = tokenizer.load_chat(folder)
    encoded, dropped = encode_conversations(
        conversations, chat, sequence_length=length, overlong=evaluated.chats.overlong
    )
    if not encoded:
        raise DataError(f"data={evaluated.chats.name}: no held-out conversation fits data.sequence_length={length}.")
    for reason, times in dropped.items():
        log.warning("%d held-out conversations left out or cut: %s", times, reason)
    rows = ConversationRows(encoded, pad_id=scorer.special.pad_id, sequence_length=length)
    found = _loss(scorer, rows, config.evaluation.batch_tokens // length)
    log.info("held-out answers: %.4f nats per token", found.loss)
    counts = {"conversations": len(encoded), "dropped": len(conversations) - len(encoded)}
    return {"loss": found.loss, "bits_per_byte": found.bits_per_byte} | counts


def _prompts(
    evaluated: Evaluated,
    folder: Path,
    scorer: "Scorer",
    documents: list[str],
    conversations: list[Conversation],
    config: EvaluateStage,
) -> list[tuple[str, list[int]]]:
    """What to go on from, with its token ids: held-out questions, or openings of held-out sentences."""
    if not config.evaluation.num_prompts:
        return []
    if evaluated.chats:
        return _questions(folder, conversations)
    from llm.evaluation import openings

    return [(text, scorer.encode(text)) for text in openings(documents, config.evaluation.num_prompts)]


def _questions(folder: Path, conversations: list[Conversation]) -> list[tuple[str, list[int]]]:
    chat = tokenizer.load_chat(folder)
    questions = [conversation.messages[:-1] for conversation in conversations]
    with tokenizer.Renderer(chat) as renderer:
        ids = renderer.prompt_ids(questions)
    return [(turns[-1]["content"], line) for turns, line in zip(questions, ids, strict=True)]


def _write(run: Run, config: EvaluateStage, scorer: "Scorer", prompts: list[tuple[str, list[int]]]) -> dict[str, Any]:
    """Statistics of what the model writes after prompts."""
    from llm.evaluation import Share, describe
    from llm.model import generate

    settings = config.evaluation
    if not settings.num_prompts:
        return {}
    new_tokens = settings.tokens_to_write(scorer.positions)
    room = scorer.positions - new_tokens
    fitting = [(shown, ids) for shown, ids in prompts if len(ids) <= room][: settings.num_prompts]
    left_out = sum(len(ids) > room for _, ids in prompts)
    if left_out:
        log.warning("%d prompts are longer than %d tokens and are left out", left_out, room)
    if not fitting:
        log.warning("no held-out text makes a prompt: the model writes nothing")
        return {"prompts": 0, "left_out": left_out}
    written = generate(
        scorer.model,
        [ids for _, ids in fitting],
        scorer.words,
        sampling=Sampling(
            max_new_tokens=new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=0,
            repetition_penalty=1.0,
            seed=config.seed,
        ),
        pad_id=scorer.special.pad_id,
        eos_ids=[scorer.special.eos_id],
        batch_size=WRITTEN_AT_ONCE,
    )
    lines = [
        {"prompt": shown, "text": each.text, "has_ended": each.end == "eos", "tokens": each.num_tokens}
        for (shown, _), each in zip(fitting, written, strict=True)
    ]
    _write_lines(run.path / "generations.jsonl", lines)
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


def _tasks(config: EvaluateStage, evaluated: Evaluated, folder: Path, scorer: "Scorer") -> dict[str, Any]:
    """The metrics of each task, and whether its questions were put by the chat template."""
    if not config.evaluation.tasks:
        return {"tasks": {}}
    from llm.evaluation.tasks import answer_tasks

    has_chat = uses_chat_template(config, evaluated.model, folder)
    log.info("tasks are asked %s the chat template (evaluation.chat_template)", "by" if has_chat else "without")
    answered = answer_tasks(scorer, folder, config.evaluation, has_chat=has_chat, seed=config.seed)
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


def _say(probes: "dict[str, Probe]") -> None:
    for name, probe in probes.items():
        low, high = probe.share.interval
        right, asked = probe.share.count, probe.share.of
        log.info(
            "%s: %d of %d right, %.1f to %.1f %%, chance %.0f %%",
            name,
            right,
            asked,
            100 * low,
            100 * high,
            100 * probe.chance,
        )
        for reason, times in probe.left_out.items():
            log.warning("%s: left out %d items: %s", name, times, reason)
    if missing := [name for name in PROBES if name not in probes]:
        log.warning("the held-out text has nothing to ask about for %s", ", ".join(missing))


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
    loads=("llm.model", "llm.trainer", "llm.evaluation"),
)
