"""The commands of README and docs/reference: the same in both languages, composable, and what they print when run."""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from korean import documents, sentences

from llm.config.compose import from_hydra

ROOT = Path(__file__).parents[1]
NOT_PLAIN = {"-m", "--help", "--cfg", "-sc"}
TINY = ["model.num_layers=1", "model.hidden_size=16", "trainer.max_steps=2", "trainer.sample_tokens=4", "logger=local"]


def commands(name: str) -> list[str]:
    """Every line of a README's bash blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


COMMANDS = [*commands("README.md"), *commands("docs/reference.md")]
REFERENCE = ROOT / "docs" / "reference.md"
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [ROOT / "README.md", *(path for path in (ROOT / "docs").glob("**/*.md") if ".ko." not in path.name)]
TRAIN = {  # every command of every page
    line.strip()
    for page in PAGES
    for line in re.findall(r"^ *python train\.py .*$", page.read_text(encoding="utf-8"), re.MULTILINE)
}


def only(*parts: str) -> list[str]:
    """The words of the one command that has all these parts, without python."""
    found = [words for c in COMMANDS if (words := shlex.split(c))[0] == "python" and all(p in words for p in parts)]
    assert len(found) == 1
    return found[0][1:]


def test_both_languages_have_the_same_commands():
    for name in (
        "README",
        "docs/reference",
        *(f"docs/tutorials/{path.stem}" for path in TUTORIALS if ".ko" not in path.name),
    ):
        assert commands(f"{name}.ko.md") == commands(f"{name}.md"), name


def test_the_readme_is_short_and_its_reference_names_every_exit_code():
    for ending in (".md", ".ko.md"):
        assert len((ROOT / f"README{ending}").read_text(encoding="utf-8").splitlines()) <= 170
        codes = re.findall(
            r"^\| (\d+) \|", (ROOT / f"docs/reference{ending}").read_text(encoding="utf-8"), re.MULTILINE
        )
        assert codes == ["0", "1", "2", "3", "65", "70", "74", "75", "130"]


def test_every_link_leads_to_a_file():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_commands_for_train_pass_the_schema():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for overrides in (shlex.split(command, comments=True)[2:] for command in sorted(TRAIN)):
            if not NOT_PLAIN & set(overrides) and not any(word.startswith("sweep=") for word in overrides):
                config = from_hydra(compose("config", overrides=overrides))
                assert f"stage={config.stage}" in [*overrides, "stage=pretrain"]


@dataclass(frozen=True)
class Ran:
    """(exit code, output) of the commands, by a word of each, and where they wrote."""

    said: dict[str, tuple[int | None, str]]
    outputs: Path


def in_process(words: list[str]) -> tuple[int | None, str]:
    """What `python -m a tool with words` does."""
    _, tool, *arguments = words
    module = import_module({"llm.chat": "llm.chat.command", "llm.compare": "llm.compare.command"}.get(tool, tool))
    said = StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            module.main(arguments)
    except SystemExit as ended:
        return ended.code, said.getvalue()
    return 0, said.getvalue()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The README's commands with small Korean data and tiny sizes, one after the other."""
    folder = tmp_path_factory.mktemp("readme")
    outputs = folder / "outputs"
    text, chats = folder / "text.txt", folder / "chats.jsonl"
    text.write_text("\n\n".join(documents(300)), encoding="utf-8")
    lines = [{"question": f"질문 {n}: 누가?", "answer": answer} for n, answer in enumerate(sentences(80))]
    chats.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")

    def train(words: list[str], *, data: str, path: Path, tiny: list[str]) -> tuple[int, str]:
        words = [word for word in words if not word.startswith("data")]  # Hydra takes one choice for a group
        words += [f"data={data}", f"data.path={path}", f"outputs={outputs}", *tiny]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    vocabulary = ["tokenizer.initial_alphabet=none", "tokenizer.vocab_size=400"]
    at = {"path": text, "data": "text"}
    said = {
        "tokenizer": train(only("stage=tokenizer"), **at, tiny=["tokenizer.vocab_size=600", "logger=local"]),
        "pretrain": train(only("stage=pretrain", "name=first"), **at, tiny=[*TINY, *vocabulary]),
        "multirun": train(only("train.py", "-m"), **at, tiny=[*TINY, *vocabulary]),
        "finetune": train(
            only("stage=finetune", "data=korean_law_qa"),
            data="conversations",
            path=chats,
            tiny=["lora.alpha=8", *TINY[2:]],
        ),
    }
    said["chat"] = in_process([*only("llm.chat", "--prompt"), "--outputs", str(outputs), "--max-new-tokens", "8"])
    said["verify"] = in_process([*only("llm.verify"), "--outputs", str(outputs)])
    said["inspect"] = in_process([*only("llm.inspect")[:-1], str(text)])
    said["tokenize"] = in_process([*only("llm.tokenize"), "--outputs", str(outputs)])
    said["compare"] = in_process([*only("llm.compare"), "--outputs", str(outputs)])
    return Ran(said, outputs)


def records(ran: Ran, stage: str) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(ran.outputs.glob(f"{stage}/*/run.json"))]


def test_the_commands_end_well(ran):
    assert {name: code for name, (code, _) in ran.said.items()} == dict.fromkeys(ran.said, 0), ran.said


def test_the_commands_leave_what_the_reference_draws(ran):
    drawn = {"run.json", "config.yaml", "log.txt"}
    trained = drawn | {"metrics.jsonl", "samples.jsonl", "checkpoints"}
    files = {
        "tokenizer": drawn
        | {"tokenizer.json", "tokenizer_config.json", "tokenizer.sha256", "chat_template.jinja", "report.json"},
        "documents": drawn | {"documents"},
        "shards": drawn | {"shards"},
        "pretrain": trained | {"validation.jsonl", "model"},
        "finetune": trained | {"adapter"},
    }
    folders = [path.parent for path in ran.outputs.glob("*/*/run.json")]
    assert {path.parent.name for path in folders} == set(files)
    for path in folders:
        assert {file.name for file in path.iterdir()} - {".lock"} == files[path.parent.name], path
    readme = REFERENCE.read_text(encoding="utf-8")
    assert all(name in readme for names in files.values() for name in names)


def test_the_metrics_of_the_commands_have_the_keys_of_the_reference(ran):
    readme = REFERENCE.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:train|val|throughput|memory)/\w+)`", readme))
    for path in ran.outputs.glob("*/first-*/metrics.jsonl"):
        keys = {key for line in path.read_text(encoding="utf-8").splitlines() for key in json.loads(line)}
        assert named and {"step", "tokens", "seconds"} | named <= keys  # docs/numbers.md has them all


def test_the_multirun_of_the_commands_crosses_its_settings_and_shares_its_parents(ran):
    made = [record for record in records(ran, "pretrain") if record["name"] != "first"]
    settings = [record["identity"]["settings"] for record in made]
    # The fourth, gpt2 at 1e-3, is the run named first, reused.
    assert sorted((s["model"]["architecture"], s["optimizer"]["learning_rate"]) for s in settings) == [
        ("gpt2", 3e-4),
        ("llama", 3e-4),
        ("llama", 1e-3),
    ]
    assert len(records(ran, "shards")) == 1
    assert sorted(record["name"] for record in records(ran, "tokenizer")) == ["blog-600-text", "char_bpe-400-text"]


def test_the_model_that_the_commands_tuned_answers(ran):
    (tuned,) = records(ran, "finetune")
    assert tuned["name"] == "first" and tuned["results"]["trainable_parameters"] > 0
    said = ran.said["chat"][1]
    assert "the fine-tuned one is meant" in said and said.strip()
