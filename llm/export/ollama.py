"""A model's folder with model.gguf -> the Modelfile beside it, by which Ollama asks and stops as training did."""

from pathlib import Path

from llm.export.weights import CHAT_TEMPLATE
from llm.run.console import log
from llm.run.models import read_json
from llm.tokenizer.chat import TEMPLATES

# The chat templates of llm/tokenizer in Go's syntax: what a turn of each role is, and where an answer begins. llama.cpp
# puts bos before it. Ollama unescapes nothing in a Modelfile; Go does within its quotes.
_ROLE = '{{ if eq .Role "system" }}%s{{ else if eq .Role "user" }}%s{{ else if eq .Role "assistant" }}%s{{ end }}'
_LAST = '{{ if and (eq .Role "user") (eq (len (slice $.Messages $i)) 1) }}{{ "<|im_start|>assistant\\n" }}{{ end }}'
_CHATML = '{{ "<|im_start|>" }}{{ .Role }}{{ "\\n" }}{{ .Content }}{{ "<|im_end|>\\n" }}'
_TURNS = {
    "plain": _ROLE
    % (
        '{{ "지시: " }}{{ .Content }}{{ "\\n" }}',
        '{{ "질문: " }}{{ .Content }}{{ "\\n답변:" }}',
        '{{ " " }}{{ .Content }}{{ "%s" }}',
    ),
    "chatml": f"{_CHATML}{_LAST}",
}
_NEXT_TURN = {"plain": "\n질문:", "chatml": "<|im_start|>"}  # a model that writes this has gone on past its answer


def modelfile(folder: Path, *, positions: int, has_chat: bool) -> str:
    """The text of a Modelfile; without a template where that of the folder is none of ours.

    Ollama then takes one that it knows and that is nearly the same as what model.gguf holds, or none.
    """
    end = read_json(folder / "tokenizer_config.json")["eos_token"]
    jinja = (folder / CHAT_TEMPLATE).read_text(encoding="utf-8") if has_chat else ""
    named = next((name for name in _TURNS if TEMPLATES[name] == jinja), None)
    lines = ["FROM ./model.gguf", f"PARAMETER num_ctx {positions}", f'PARAMETER stop "{end}"']
    if named:
        turns = _TURNS[named].replace("%s", end)
        lines.append(f'PARAMETER stop """{_NEXT_TURN[named]}"""')
        lines.append(f'TEMPLATE """{{{{ range $i, $turn := .Messages }}}}{turns}{{{{ end }}}}"""')
    elif not has_chat:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    else:
        log.warning("Modelfile has no TEMPLATE: the model's chat template is none of %s", ", ".join(_TURNS))
    return "\n".join(lines) + "\n"
