"""A run or any model's folder -> results.json: what it makes of held-out text, of conversations, and of tasks."""

import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from llm.config.data import DataConfig, DataKind
from llm.config.evaluation import EvaluationConfig
from llm.config.stages import EvaluateStage
from llm.config.training import Accelerator
from llm.data.conversations import ConversationRows, encode_conversations
from llm.data.mixture import rows_of
from llm.data.records import Conversation
from llm.data.shards import Sources
from llm.environment import process_rank
from llm.errors import ConfigError, DataError
from llm.run.console import TextTable, console, log
from llm.run.files import TEMPORARY, digest_of, sha256_of, write_json, write_text
from llm.run.making import Outcome, Plan
from llm.run.models import Model
from llm.run.runs import Run, check_files
from llm.stage import Runs, Stage, Step, documents
from llm.stage.estimate import Estimate
from llm.stage.held_out import Evaluated, documents_of, find_evaluated, open_sources
from llm.stage.training import Prompts, prompts_of
from llm.tokenizer.folder import convert_tokenizer, load_chat, load_tokenizer, read_special

if TYPE_CHECKING:
    from llm.evaluation.scoring import Scorer

MEASURED = ("loss", "bits_per_byte")
CHANCE = {"particles": 0.5, "next_sentence": 0.25, "word_order": 0.5}  # of each probe, to be right by it
WRITTEN = (
    *("prompts", "left_out", "stop_rate", "stop_rate_low", "stop_rate_high", "tokens_mean"),
    *("repeated_4grams", "distinct_1", "distinct_2", "hangul_share", "broken_share", "empty_share"),
)
TASK_SUFFIXES = (".yaml", ".yml", ".py", ".json", ".jsonl", ".txt", ".csv", ".parquet")
ASIDE = ("_low", "_high", "_items")  # ends of names that stand in the row of another
FORMAT_VERSION = 6


def parents(config: EvaluateStage) -> dict[str, Step]:
    """The documents of the text that is asked for, if any is."""
    is_text = config.data is not None and config.data.kind is DataKind.text
    return documents.steps(config.data, outputs=config.outputs) if config.data and is_text else {}


def plan(config: EvaluateStage, parents: Runs) -> Plan:
    evaluated, asked = find_evaluated(config, documents.of_parts(parents)), config.evaluation
    _check_here(asked)
    made_of = {"run": evaluated.model.run, "shards": evaluated.shards}
    return Plan(
        config=config,
        default_name=evaluated.model.name,
        format_version=FORMAT_VERSION,
        parents=evaluated.parents() | _task_files(asked),
        folders={role: str(of.path) for role, of in (made_of | dict(parents)).items() if of},
        work=lambda run: _evaluate(run, config, evaluated),
        check=lambda run: _show(run, evaluated),
        waits=True,
    )


def estimate(config: EvaluateStage, parents: Runs) -> Estimate:
    shards = find_evaluated(config, documents.of_parts(parents)).shards
    return Estimate(tokens=shards.results["held_out"]["tokens"] if shards else None)


def result_names(config: EvaluateStage) -> list[str]:
    """The numbers that a run may have to show at its end, by name; `*` is for what the text or a task brings."""
    measured = [f"{group}/{name}" for group in ("val", "answers") for name in MEASURED]
    measured += ["val/raw_bytes", "val/lost_bytes"]
    of_parts = [f"val/{name}/*" for name in MEASURED]
    probes = [f"probe/{name}{end}" for name in CHANCE for end in ("", "_items", "_low", "_high", "/*")]
    writing = [f"writing/{name}" for name in WRITTEN]
    tasks = ["task/*"] if config.evaluation.tasks else []
    return [*measured, *of_parts, "answers/conversations", "answers/dropped", *probes, *writing, *tasks]


def _check_here(asked: EvaluationConfig) -> None:
    """Refuse, before any work, what this machine cannot do."""
    if asked.accelerator is Accelerator.gpu:
        import torch  # takes seconds

        if not torch.cuda.is_available():
            raise ConfigError("evaluation.accelerator=gpu, but torch can use no GPU here. Set it to cpu.")
    if asked.tasks and find_spec("lm_eval") is None:
        raise ConfigError(
            f"evaluation.tasks={asked.tasks} are answered through lm-eval, which is not installed. Install the extra: "
            "pip install -e '.[eval]', or leave evaluation.tasks out."
        )
    if asked.task_path is not None and not Path(asked.task_path).is_dir():
        raise ConfigError(f"evaluation.task_path={asked.task_path} is no folder. Give the one with the task files.")
    if asked.tasks:
        from llm.evaluation.tasks import require_tasks  # lm-eval takes seconds

        require_tasks(asked)


def _task_files(asked: EvaluationConfig) -> dict[str, str]:
    """The digest of the task files that the user brings, if any."""
    if asked.task_path is None:
        return {}
    files = [path for path in sorted(Path(asked.task_path).rglob("*")) if path.suffix in TASK_SUFFIXES]
    return {"tasks": digest_of([[str(path.relative_to(asked.task_path)), sha256_of(path)] for path in files])}


def _evaluate(run: Run, config: EvaluateStage, evaluated: Evaluated) -> Outcome:
    model, chats = evaluated.model, evaluated.chats
    with TemporaryDirectory(dir=run.path, prefix=TEMPORARY) as scratch:
        folder = model.tokenizer  # as our runs have it, whosever it is
        if model.run is None:
            folder = convert_tokenizer(folder, Path(scratch) / "tokenizer", key=f"run={model.path}")
        scorer = _open_scorer(config.evaluation, model, folder)
        sources = open_sources(evaluated, folder, Path(scratch))
        texts = documents_of(sources, scorer.tokenizer, seed=config.seed)
        numbers = _text(sources, evaluated, scorer) | _probes(run, config, texts, scorer)
        conversations = evaluated.held_out_conversations()
        if chats:
            numbers |= _answers(chats, conversations, folder, scorer)
            prompts = prompts_of(folder, [each.messages[:-1] for each in conversations])
        else:
            prompts = _openings(texts, config.evaluation.num_prompts, scorer)
        numbers |= _writing(run, config, prompts, scorer) | _tasks(config, model, folder, scorer)
    notes: dict[str, Any] = {"evaluated": evaluated.note()}
    results = {"run": notes["evaluated"], "seed": config.seed, **numbers}
    write_json(run.path / "results.json", results)
    known = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
    objective = numbers.get("answers/loss" if chats else "val/bits_per_byte")
    return Outcome(results=known, digest=digest_of(results), objective=objective, notes=notes)


def _open_scorer(asked: EvaluationConfig, model: Model, folder: Path) -> "Scorer":
    import torch

    from llm import model as models
    from llm.evaluation.scoring import Scorer

    loaded = models.load(model.weights, adapter=model.adapter).eval()
    loaded.config.pad_token_id = None  # else transformers warns of padding without a mask, which on the right none sees
    vocabulary = load_tokenizer(folder)
    if (rows := loaded.get_input_embeddings().weight.shape[0]) < (tokens := vocabulary.get_vocab_size()):
        raise ConfigError(f"run={model.path}: {rows} embeddings for {tokens} tokens. Put its own tokenizer there.")
    models.require_isolation(loaded, vocab_size=tokens, architecture=loaded.config.model_type)
    loaded.to("cuda" if asked.accelerator is not Accelerator.cpu and torch.cuda.is_available() else "cpu")
    special, size = read_special(folder), asked.batch_tokens
    return Scorer(loaded, vocabulary, special, positions=model.positions, batch_tokens=size)


# The steps: each gives numbers by the names that W&B and llm.compare have them under


def _text(sources: Sources, evaluated: Evaluated, scorer: "Scorer") -> dict[str, Any]:
    """Loss and bits per byte, of each part of a mixture too; nothing where no text is known."""
    if not sources:
        log.warning(
            "no text is known that %s has not learned from: bits per byte and probes are left out. Give data=text "
            "data.path=<files> for them",
            evaluated.model.name,
        )
        return {}
    rows = rows_of(sources, "held_out", sequence_length=evaluated.row_length(sources))
    found = scorer.loss(rows)
    numbers: dict[str, Any] = {}
    for end, part in {"": found, **{f"/{name}": part for name, part in found.parts.items()}}.items():
        numbers |= {f"val/loss{end}": part.loss, f"val/bits_per_byte{end}": part.bits_per_byte}
        log.info("held-out text%s: %.4f nats per token, %.4f bits per byte", end, part.loss, part.bits_per_byte)
    return numbers | {"val/raw_bytes": rows.raw_bytes, "val/lost_bytes": rows.lost_bytes}


def _answers(chats: DataConfig, conversations: list[Conversation], folder: Path, scorer: "Scorer") -> dict[str, Any]:
    """The loss of held-out answers."""
    length, chat = chats.sequence_length, load_chat(folder)
    encoded, dropped = encode_conversations(conversations, chat, sequence_length=length, overlong=chats.overlong)
    if not encoded:
        raise DataError(f"data={chats.name}: no held-out conversation fits data.sequence_length={length}.")
    for reason, times in dropped.items():
        log.warning("%d held-out conversations left out or cut: %s", times, reason)
    found = scorer.loss(ConversationRows(encoded, pad_id=scorer.special.pad_id, sequence_length=length))
    log.info("held-out answers: %.4f nats per token", found.loss)
    numbers = {"loss": found.loss, "bits_per_byte": found.bits_per_byte, "conversations": len(encoded)}
    return {f"answers/{n}": v for n, v in (numbers | {"dropped": len(conversations) - len(encoded)}).items()}


def _probes(run: Run, config: EvaluateStage, documents: list[str], scorer: "Scorer") -> dict[str, Any]:
    from llm.evaluation.probes import make_items, measure

    asked = config.evaluation.num_items
    items = make_items(documents, scorer, num_items=asked, seed=config.seed)
    numbers, records = measure(items, scorer)
    _write_lines(run.path / "probes.jsonl", records)
    if asked and documents and (missing := [name for name in CHANCE if f"probe/{name}" not in numbers]):
        log.warning("the held-out text has nothing to ask about for %s", ", ".join(missing))
    # Two runs with one digest were asked the same.
    return numbers | {"items_sha256": digest_of([item.choices for item in items])}


def _openings(documents: list[str], count: int, scorer: "Scorer") -> Prompts:
    from llm.evaluation.probes import openings

    return [(text, scorer.encode(text)) for text in openings(documents, count)]


def _writing(run: Run, config: EvaluateStage, prompts: Prompts, scorer: "Scorer") -> dict[str, Any]:
    from llm.evaluation.writing import write

    if not config.evaluation.num_prompts:
        return {}
    numbers, records = write(prompts, scorer, config.evaluation, seed=config.seed)
    _write_lines(run.path / "generations.jsonl", records)
    return {f"writing/{name}": value for name, value in numbers.items()}


def _tasks(config: EvaluateStage, model: Model, folder: Path, scorer: "Scorer") -> dict[str, Any]:
    """The metrics of each task, and whether its questions were put by the chat template."""
    if not config.evaluation.tasks:
        return {}
    from llm.evaluation.tasks import answer_tasks

    has_chat = uses_chat_template(config, model, folder)
    log.info("tasks are asked %s the chat template (evaluation.chat_template)", "by" if has_chat else "without")
    answered = answer_tasks(scorer, folder, config.evaluation, has_chat=has_chat, seed=config.seed)
    numbers = {f"task/{name}/{metric}": value for name, of in answered.items() for metric, value in of.items()}
    return numbers | {"tasks_chat_template": "asked by it" if has_chat else "asked without"}


def uses_chat_template(config: EvaluateStage, model: Model, folder: Path) -> bool:
    """As it is asked for; else of a tuned run, and of a folder that has a template. Every tokenizer of ours has one."""
    has_template = load_chat(folder).chat_template is not None
    if config.evaluation.chat_template is None:
        return has_template and (model.run is None or model.run.stage == "finetune")
    if config.evaluation.chat_template and not has_template:
        raise ConfigError("evaluation.chat_template=true, but the tokenizer has no chat template. Leave it out.")
    return config.evaluation.chat_template


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _show(made: Run, evaluated: Evaluated) -> None:
    """Its table, whether it was made now or before."""
    if process_rank() == 0:
        check_files(made, under="results.json")
        console().print(evaluated.model.title, *table(made.results).drawn(console()), sep="\n")


def table(numbers: dict[str, float]) -> TextTable:
    """A row for each number, with its interval, what chance gives and how much was asked, where it has these."""
    rows = []
    for name, value in numbers.items():
        if not name.endswith(ASIDE):
            has_interval = f"{name}_low" in numbers
            between = f"{numbers[f'{name}_low']:.4f} to {numbers[f'{name}_high']:.4f}" if has_interval else ""
            chance, items = CHANCE.get(name.removeprefix("probe/"), ""), numbers.get(f"{name}_items", "")
            rows.append([name, f"{value:,}" if isinstance(value, int) else f"{value:.4f}", between, chance, items])
    head = ["measure", "value", "95 % interval", "chance", "items"]
    return TextTable(head, [list(map(str, row)) for row in rows])


STAGE = Stage(
    parents=parents,
    plan=plan,
    result_names=result_names,
    estimate=estimate,
    loads=("llm.model", "llm.trainer.validation", "llm.evaluation.probes"),
)
