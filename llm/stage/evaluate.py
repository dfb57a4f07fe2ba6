"""A pretrained or fine-tuned run -> results.json: what its model makes of held-out text, and of tasks.

It takes no settings of the data: the text is what the run itself held out, so that none of it was learned from.
"""

import json
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm import tokenizer
from llm.config import Accelerator, EvaluateStage
from llm.data import (
    Conversation,
    ConversationRows,
    EvaluationBatches,
    Rows,
    TokenRows,
    encode_conversations,
    read_manifest,
)
from llm.errors import DataError, DivergedError
from llm.logger import open_logger
from llm.run import Outcome, Plan, Run, check_files, console, digest_of, log, make, process_rank, write_json, write_text
from llm.stage._report import flat, table
from llm.stage._subject import Subject, find_subject, held_out_note, task_parents

if TYPE_CHECKING:
    from llm.evaluation import Probe, Scorer

PROBES = ("particles", "next_sentence", "word_order")
FORMAT_VERSION = 1


def run(config: EvaluateStage) -> Run:
    """The finished evaluation of a config; its table is shown, whether it was made now or before."""
    subject = find_subject(config)
    if config.evaluation.tasks:
        from llm.evaluation.tasks import require_tasks  # lm-eval takes seconds

        require_tasks(config.evaluation)
    plan = Plan(
        config=config,
        default_name=str(subject.run.record["name"]),
        format_version=FORMAT_VERSION,
        parents=subject.parents() | task_parents(config.evaluation),
        folders={"run": str(subject.run.path), "shards": str(subject.shards.path)},
    )
    made = make(plan, lambda run: _evaluate(run, config, subject), wait=True)
    if process_rank() == 0:
        check_files(made, under="results.json")
        _show(made, subject)
    return made


def _evaluate(run: Run, config: EvaluateStage, subject: Subject) -> Outcome:
    from llm.evaluation import held_out_documents, make_items, measure  # takes seconds

    settings, folder = config.evaluation, subject.shards.path / "shards"
    manifest = read_manifest(folder)
    scorer = _open_scorer(config, subject)
    rows = TokenRows(
        folder, manifest, manifest.held_out, sequence_length=subject.base.config["data"]["sequence_length"]
    )
    text = _loss(scorer, rows, settings.batch_tokens // rows.sequence_length)
    log.info("held-out text: %.4f nats per token, %.4f bits per byte", text["loss"], text["bits_per_byte"])
    conversations = _held_out_conversations(subject)
    answers = {"answers": _answers(scorer, subject, conversations, settings.batch_tokens)} if subject.data else {}
    documents = held_out_documents(folder, manifest, scorer.words, seed=config.seed)
    items = make_items(documents, scorer, num_items=settings.num_items, seed=config.seed)
    probes, asked = measure(items, scorer)
    _write_lines(run.path / "probes.jsonl", asked)
    if settings.num_items:
        _say(probes)
    results = {
        "run": held_out_note(subject),
        "seed": config.seed,
        "text": text | {"raw_bytes": rows.raw_bytes, "lost_bytes": rows.lost_bytes},
        **answers,
        "probes": {name: probe.as_json() for name, probe in probes.items()},
        "items_sha256": digest_of([item.choices for item in items.asked]),  # two runs with one were asked the same
        "writing": _write(run, config, scorer, subject, documents, conversations) if settings.num_prompts else {},
        "tasks": _tasks(config, scorer),
    }
    write_json(run.path / "results.json", results)
    numbers = flat(results)
    with open_logger(config.logger, run, outputs=Path(config.outputs)) as logger:
        logger.summarize(numbers)
    objective = results["answers"]["loss"] if answers else text["bits_per_byte"]
    return Outcome(results=numbers, digest=digest_of(results), objective=objective, notes={"evaluated": results["run"]})


def _open_scorer(config: EvaluateStage, subject: Subject) -> "Scorer":
    import torch

    from llm import model as models
    from llm.evaluation import Scorer

    weights = subject.weights
    model: Any = models.load(weights.model)
    if weights.adapter:
        model = models.load_adapter(model, weights.adapter)
    on_gpu = config.evaluation.accelerator is not Accelerator.cpu and torch.cuda.is_available()
    return Scorer(
        model.eval().to("cuda" if on_gpu else "cpu"),
        tokenizer.load(subject.folder),
        tokenizer.special(subject.folder),
        positions=subject.positions,
        batch_tokens=config.evaluation.batch_tokens,
    )


def _loss(scorer: "Scorer", rows: Rows, rows_at_once: int) -> dict[str, float]:
    """Loss and bits per byte, as training validates."""
    from torch.utils.data import DataLoader

    from llm import trainer

    batches: Any = EvaluationBatches(rows.num_labels, batch_size=max(1, rows_at_once))
    loader = DataLoader[Any](rows, batch_sampler=batches, collate_fn=_as_it_is)  # type: ignore[arg-type]  # __getitems__
    device = next(scorer.model.parameters()).device
    found = trainer.evaluate(scorer.model, loader, rows, device=device)
    if not isfinite(found.loss):
        raise DivergedError(f"the held-out loss of this model is {found.loss}. Train it again with a lower rate.")
    return {"loss": found.loss, "bits_per_byte": found.bits_per_byte}


def _as_it_is(batch: Any) -> Any:
    return batch


def _held_out_conversations(subject: Subject) -> list[Conversation]:
    records = subject.corpus.records(held_out=True) if subject.corpus else ()
    return [record for record in records if isinstance(record, Conversation)]


def _answers(scorer: "Scorer", subject: Subject, conversations: list[Conversation], batch_tokens: int) -> Any:
    assert subject.data is not None
    length = subject.data.sequence_length
    chat = tokenizer.load_chat(subject.folder)
    encoded, dropped = encode_conversations(
        conversations, chat, scorer.special, sequence_length=length, overlong=subject.data.overlong
    )
    if not encoded:
        raise DataError(f"data={subject.data.name}: no held-out conversation fits data.sequence_length={length}.")
    for reason, times in dropped.items():
        log.warning("%d held-out conversations left out or cut: %s", times, reason)
    found = _loss(scorer, ConversationRows(encoded, pad_id=scorer.special.pad_id), batch_tokens // length)
    log.info("held-out answers: %.4f nats per token", found["loss"])
    return found | {"conversations": len(encoded), "dropped": len(conversations) - len(encoded)}


def _write(
    run: Run,
    config: EvaluateStage,
    scorer: "Scorer",
    subject: Subject,
    documents: list[str],
    conversations: list[Conversation],
) -> dict[str, Any]:
    """Statistics of what the model writes: after openings of held-out sentences, or in answer to held-out questions."""
    from llm.evaluation import Share, describe, write

    settings = config.evaluation
    prompts = _questions(subject, conversations) if subject.data else _openings(scorer, documents, settings.num_prompts)
    new_tokens = settings.tokens_to_write(scorer.positions)
    room = scorer.positions - new_tokens
    fitting = [(shown, ids) for shown, ids in prompts if len(ids) <= room][: settings.num_prompts]
    left_out = sum(len(ids) > room for _, ids in prompts)
    if left_out:
        log.warning("%d prompts are longer than %d tokens and are left out", left_out, room)
    if not fitting:
        log.warning("no held-out text makes a prompt: the model writes nothing")
        return {"prompts": 0, "left_out": left_out}
    written = write(
        scorer.model,
        [ids for _, ids in fitting],
        scorer.words,
        scorer.special,
        max_new_tokens=new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=config.seed,
    )
    lines = [
        {"prompt": shown, "text": each.text, "has_ended": each.has_ended, "tokens": each.num_tokens}
        for (shown, _), each in zip(fitting, written, strict=True)
    ]
    _write_lines(run.path / "generations.jsonl", lines)
    ended = Share(sum(each.has_ended for each in written), len(written))
    return {
        "prompts": len(written),
        "left_out": left_out,
        "stop_rate": ended.value,
        "stop_rate_low": ended.interval[0],
        "stop_rate_high": ended.interval[1],
        "tokens_mean": sum(each.num_tokens for each in written) / len(written),
        **describe([each.text for each in written]),
    }


def _openings(scorer: "Scorer", documents: list[str], count: int) -> list[tuple[str, list[int]]]:
    from llm.evaluation import openings

    return [(text, scorer.encode(text)) for text in openings(documents, count)]


def _questions(subject: Subject, conversations: list[Conversation]) -> list[tuple[str, list[int]]]:
    chat = tokenizer.load_chat(subject.folder)
    questions = [conversation.messages[:-1] for conversation in conversations]
    with tokenizer.Renderer(chat) as renderer:
        texts = renderer.prompts(questions)
    ids = [chat(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [(turns[-1]["content"], list(line)) for turns, line in zip(questions, ids, strict=True)]


def _tasks(config: EvaluateStage, scorer: "Scorer") -> dict[str, Any]:
    if not config.evaluation.tasks:
        return {}
    from llm.evaluation.tasks import answer_tasks

    return answer_tasks(scorer, config.evaluation, seed=config.seed)


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


def _show(made: Run, subject: Subject) -> None:
    results = json.loads((made.path / "results.json").read_text(encoding="utf-8"))
    console().print(table(results, title=f"{subject.run.stage} {subject.run.path.name}"))
