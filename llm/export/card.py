"""A run, what it was made from and what was proved of its export -> README.md, the card that goes with the model."""

from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from llm.config.evaluation import ExportConfig
from llm.run.console import TextTable, shown
from llm.run.models import Model, is_foreign, with_parents
from llm.run.runs import Run

NO_RIGHTS_OF_BASE = "those of the model's owner: see its own card"
NO_RIGHTS = "none stated: it is the owner's own text. State its terms before you publish."


def card(run: Run, model: Model, config: ExportConfig, *, architecture: str, proof: dict[str, float]) -> str:
    """README.md of a run's model, exported as `config` says: Markdown under a YAML header as model hubs read it."""
    lineage = with_parents([run])
    base = config.base_model or run.places.get("base", run.path).resolve().name
    library = "transformers" if config.merge else "peft"
    header: dict[str, Any] = {"language": ["ko"], "library_name": library, "pipeline_tag": "text-generation"}
    header |= {} if config.merge else {"base_model": base}
    header |= {"tags": ["ttukttak", architecture]}
    learned = [f"pretrained on `{_data(each)}`" for each in lineage if each.stage == "pretrain"]
    learned = learned or [f"begun from `{base}`"]
    learned += [f"tuned on `{_data(run)}`"] if run.stage == "finetune" else []
    summary = (
        f"{'A' if config.merge else 'An adapter on a'} {architecture} causal language model of "
        f"{proof['parameters']:,} parameters, {' and '.join(learned)}; weights in {config.dtype.value}. A text may "
        f"take {model.positions:,} tokens; it was trained on rows of {int(run.config['data']['sequence_length']):,}."
    )
    versions = {"ttukttak (commit)": run.record.get("commit"), **run.record.get("versions", {})}
    numbers = {name: value for name, value in run.results.items() if isinstance(value, int | float)}
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {run.record['name']}\n\n{summary}",
        f"## Use\n\n{_use(run, model, config, base)}",
        f"## Made from\n\n{_table(['step', 'run', 'digest', 'text', 'rights of the text'], _steps(lineage))}",
        f"## Numbers\n\n{_measures(numbers)}",
        f"## What was proved of these files\n\n{_measures(proof)}",
        f"## Made with\n\n{_table(['', 'version'], ([name, str(it)] for name, it in versions.items() if it))}",
    ]
    return "\n\n".join(parts) + "\n"


def _data(run: Run) -> str:
    return str(run.config["data"]["name"])


def _use(run: Run, model: Model, config: ExportConfig, base: str) -> str:
    has_chat, folder = run.stage == "finetune", "path/to/this/folder"
    loader = "AutoModelForCausalLM" if config.merge else "AutoPeftModelForCausalLM"
    ask = (
        'messages = [{"role": "user", "content": "전자금융업자의 등록 요건은 무엇인가요?"}]\n'
        'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)'
        if has_chat
        else 'inputs = tokenizer("대한민국은", return_tensors="pt")'
    )
    code = (
        f"from {'transformers' if config.merge else 'peft'} import {loader}\n"
        "from transformers import AutoTokenizer\n\n"
        f'model = {loader}.from_pretrained("{folder}")\ntokenizer = AutoTokenizer.from_pretrained("{folder}")\n{ask}\n'
        "output = model.generate(**inputs, max_new_tokens=64)\n"
        "print(tokenizer.decode(output[0], skip_special_tokens=True))"
    )
    parts = [f"```python\n{code}\n```"]
    if not config.merge:
        parts.append(f"`base_model_name_or_path` in adapter_config.json says where its base `{base}` lies.")
    if config.gguf:
        flags = "-cnv --jinja" if has_chat else '-no-cnv -p "대한민국은"'
        parts.append(f"llama.cpp: `llama-cli -m model.gguf -c {model.positions} {flags}`.")
        parts.append(f"Ollama: `ollama create {run.record['name']} -f Modelfile`.")
    return "\n\n".join(parts)


def _steps(lineage: list[Run]) -> Iterator[list[str]]:
    for run in lineage:
        if "base" in run.places and is_foreign(run.places["base"]):
            digest = run.record["identity"]["parents"]["base"][:12]
            yield ["model", run.places["base"].resolve().name, digest, "", NO_RIGHTS_OF_BASE]
        notes = run.record.get("notes") or {}
        has_text = "rights" in notes
        text = [_data(run) if "data" in run.config else "", notes["rights"] or NO_RIGHTS] if has_text else ["", ""]
        yield [run.stage, run.path.name, run.digest[:12], *text]


def _measures(numbers: dict[str, float]) -> str:
    return _table(["measure", "value"], ([name, shown(value)] for name, value in numbers.items()))


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    return TextTable(head, list(rows)).markdown()
