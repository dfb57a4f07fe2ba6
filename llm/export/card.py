"""A run, what it was made from and what was proved of its export -> README.md, the card that goes with the model."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from llm.config.stages import MODEL_STAGES
from llm.export.plot import loss_plot
from llm.run.metrics import history
from llm.run.models import is_foreign
from llm.run.runs import Run, metrics_of

MOST_ROWS = 12  # of the table of losses
SHOWN = ("val/loss", "val/bits_per_byte")
STEP = ["step", "run", "digest", "text", "rights of the text"]
NO_RIGHTS_OF_BASE = "those of the model's owner: see its own card"
NO_RIGHTS = "none stated: it is the owner's own text. State its terms before you publish."


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card says beyond what the runs themselves record."""

    is_adapter: bool
    base_model: str  # that it was tuned from
    architecture: str
    dtype: str
    positions: int  # tokens that a text may take
    has_chat: bool  # it was tuned on conversations
    file_for_llama_cpp: str | None
    proof: dict[str, Any]  # measure -> value, as run.json has them


def card(run: Run, facts: Facts) -> dict[str, str]:
    """File name -> text: README.md, Markdown under a YAML header as model hubs read it, and the pictures in it."""
    lineage = list(_lineage(run))
    plots = {name: plot for each in lineage for name, plot in _plot(each).items()}
    parts = [
        _header(facts),
        f"# {run.record['name']}\n\n{_summary(run, lineage, facts)}",
        f"## Use\n\n{_use(facts)}",
        f"## Made from\n\n{_table(STEP, [*map(_foreign, _bases(lineage)), *map(_step, lineage)])}",
        f"## Numbers\n\n{_table(['measure', 'value'], _numbers(run))}",
        *(f"## Loss of the {each.stage} run\n\n{shown}" for each in lineage if (shown := _losses(each, plots))),
        f"## What was proved of these files\n\n{_table(['measure', 'value'], _proof(facts.proof))}",
        f"## Settings\n\n{_settings(lineage)}",
        f"## Made with\n\n{_versions(run)}",
    ]
    return plots | {"README.md": "\n\n".join(parts) + "\n"}


def _header(facts: Facts) -> str:
    library = "peft" if facts.is_adapter else "transformers"
    values: dict[str, Any] = {"language": ["ko"], "library_name": library, "pipeline_tag": "text-generation"}
    if facts.is_adapter:
        values["base_model"] = facts.base_model
    values["tags"] = ["ttukttak", facts.architecture]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _summary(run: Run, lineage: list[Run], facts: Facts) -> str:
    what = "An adapter on" if facts.is_adapter else "A"
    learned = [f"pretrained on `{_data(each)}`" for each in lineage if each.stage == "pretrain"]
    learned += [f"begun from `{facts.base_model}`"] if not learned else []
    learned += [f"tuned on `{_data(run)}`"] if run.stage == "finetune" else []
    made = f"{what} {facts.architecture} causal language model of {facts.proof['parameters']:,} parameters, "
    made += " and ".join(learned)
    return (
        f"{made}; weights in {facts.dtype}. It was trained on rows of {int(run.config['data']['sequence_length']):,} "
        f"tokens, and a text may take {facts.positions:,}."
    )


def _data(run: Run) -> str:
    return str(run.config["data"]["name"])


def _use(facts: Facts) -> str:
    folder = "path/to/this/folder"
    loader, imports = "AutoModelForCausalLM", "from transformers import AutoModelForCausalLM, AutoTokenizer"
    if facts.is_adapter:
        loader = "AutoPeftModelForCausalLM"
        imports = f"from peft import {loader}\nfrom transformers import AutoTokenizer"
    ask = (
        'messages = [{"role": "user", "content": "전자금융업자의 등록 요건은 무엇인가요?"}]\n'
        'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)'
        if facts.has_chat
        else 'inputs = tokenizer("대한민국은", return_tensors="pt")'
    )
    code = (
        f"{imports}\n\n"
        f'model = {loader}.from_pretrained("{folder}")\ntokenizer = AutoTokenizer.from_pretrained("{folder}")\n{ask}\n'
        "output = model.generate(**inputs, max_new_tokens=64)\n"
        "print(tokenizer.decode(output[0], skip_special_tokens=True))"
    )
    parts = [f"```python\n{code}\n```"]
    if facts.is_adapter:
        parts.append(
            f"Its base is `{facts.base_model}`: `base_model_name_or_path` in adapter_config.json says where that lies."
        )
    else:
        parts.append(f"vLLM: `vllm serve {folder} --max-model-len {facts.positions}`.")
    if facts.file_for_llama_cpp:
        flags = "-cnv --jinja" if facts.has_chat else '-no-cnv -p "대한민국은"'
        parts.append(f"llama.cpp: `llama-cli -m {facts.file_for_llama_cpp} -c {facts.positions} {flags}`.")
    return "\n\n".join(parts)


def _lineage(run: Run) -> Iterator[Run]:
    """The runs that a run was made from and the run itself, what was first first, each once."""
    found: dict[str, Run] = {}

    def add(each: Run) -> None:
        for name, folder in each.places.items():
            if not is_foreign(folder):
                add(each.parent(name))
        found.setdefault(each.digest, each)

    add(run)
    yield from found.values()


def _bases(lineage: list[Run]) -> list[Run]:
    """The runs that began from a model which no run made."""
    return [run for run in lineage if "base" in run.places and is_foreign(run.places["base"])]


def _foreign(run: Run) -> list[str]:
    digest = run.record["identity"]["parents"]["base"][:12]
    return ["model", run.places["base"].resolve().name, digest, "", NO_RIGHTS_OF_BASE]


def _step(run: Run) -> list[str]:
    notes = run.record.get("notes") or {}
    rights = " ".join((notes.get("rights") or NO_RIGHTS).split()) if "rights" in notes else ""
    data = _data(run) if "data" in run.config and "rights" in notes else ""
    return [run.stage, run.path.name, run.digest[:12], data, rights]


def _numbers(run: Run) -> Iterator[list[str]]:
    for name, value in run.results.items():
        if isinstance(value, int | float):
            yield [f"`{name}`", _shown(value)]


def _proof(proof: dict[str, Any]) -> Iterator[list[str]]:
    for name, value in proof.items():
        yield [name.replace("_", " "), _shown(value) if isinstance(value, int | float) else str(value)]


def _plot(run: Run) -> dict[str, str]:
    """The losses of a run that trained a model, as a picture under its file name."""
    if run.stage not in MODEL_STAGES:
        return {}
    records = metrics_of(run)
    plot = loss_plot(
        f"{run.stage} {run.path.name}", {name: history(records, name) for name in ("train/loss", "val/loss")}
    )
    return {f"loss_{run.stage}.svg": plot} if plot else {}


def _losses(run: Run, plots: dict[str, str]) -> str | None:
    """The picture and a table of the validations of a run, evenly taken where there are many."""
    if run.stage not in MODEL_STAGES:
        return None
    records = [record for record in metrics_of(run) if "val/loss" in record]
    if not records:
        return None
    rows = min(MOST_ROWS, len(records))
    places = [i * (len(records) - 1) // max(1, rows - 1) for i in range(rows)]
    names = [name for name in SHOWN if any(name in records[place] for place in places)]
    shown = [records[place] for place in places]
    cells = ([f"{each['step']:,}", *(_shown(each[n]) if n in each else "" for n in names)] for each in shown)
    picture = f"loss_{run.stage}.svg"
    shows = f"![losses of the {run.stage} run]({picture})\n\n" if picture in plots else ""
    return shows + _table(["step", *names], cells)


def _settings(lineage: list[Run]) -> str:
    """The settings that determine each run, but for those that are empty: no paths, no machines."""
    settings = [(run.stage, _filled(run.record["identity"]["settings"])) for run in lineage]
    blocks = (
        f"<details><summary>stage={stage}</summary>\n\n```yaml\n"
        f"{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}```\n\n</details>"
        for stage, values in settings
    )
    return "\n\n".join(blocks)


def _filled(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: _filled(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in kept.items() if value not in (None, {}, [])}


def _versions(run: Run) -> str:
    versions = {"ttukttak (commit)": run.record.get("commit"), **run.record.get("versions", {})}
    return _table(["", "version"], ([name, str(version)] for name, version in versions.items() if version))


def _table(head: list[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _shown(value: float) -> str:
    if isinstance(value, bool):
        return json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
