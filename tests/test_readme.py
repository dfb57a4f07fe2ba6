"""The commands of README and docs/reference: the same in both languages, composable, and what they print when run."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
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
TRAIN = [shlex.split(command)[2:] for command in COMMANDS if command.startswith("python train.py")]
PLAIN = [words for words in TRAIN if not NOT_PLAIN & set(words) and not any(w.startswith("sweep=") for w in words)]


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


def test_the_commands_pass_the_schema():
    typed = [line for path in TUTORIALS for line in commands(f"docs/tutorials/{path.name}") if "train.py" in line]
    tutorials = [shlex.split(line)[2:] for line in typed if " -m " not in line and "sweep=" not in line]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for overrides in [*PLAIN, *tutorials]:
            config = from_hydra(compose("config", overrides=overrides))
            assert f"stage={config.stage}" in [*overrides, "stage=pretrain"]


@dataclass(frozen=True)
class Ran:
    """What the commands said, by a word of each, and where they wrote."""

    said: dict[str, subprocess.CompletedProcess[str]]
    outputs: Path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The README's commands with small Korean data and tiny sizes, one after the other."""
    folder = tmp_path_factory.mktemp("readme")
    outputs = folder / "outputs"
    text, chats = folder / "text.txt", folder / "chats.jsonl"
    text.write_text("\n\n".join(documents(300)), encoding="utf-8")
    lines = [{"question": f"질문 {n}: 누가?", "answer": answer} for n, answer in enumerate(sentences(80))]
    chats.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")

    def run(words: list[str]) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)

    def train(words: list[str], *, data: str, path: Path, tiny: list[str]) -> subprocess.CompletedProcess[str]:
        words = [word for word in words if not word.startswith("data")]  # Hydra takes one choice for a group
        return run([*words, f"data={data}", f"data.path={path}", f"outputs={outputs}", *tiny])

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
    said["chat"] = run([*only("llm.chat", "--prompt"), "--outputs", str(outputs), "--max-new-tokens", "8"])
    said["verify"] = run([*only("llm.verify"), "--outputs", str(outputs)])
    said["inspect"] = run([*only("llm.inspect")[:-1], str(text)])
    said["tokenize"] = run([*only("llm.tokenize"), "--outputs", str(outputs)])
    said["compare"] = run([*only("llm.compare"), "--outputs", str(outputs)])
    return Ran(said, outputs)


def records(ran: Ran, stage: str) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(ran.outputs.glob(f"{stage}/*/run.json"))]


def test_every_command_ends_well(ran):
    assert {name: (done.returncode, done.stderr[-400:] * bool(done.returncode)) for name, done in ran.said.items()} == {
        name: (0, "") for name in ran.said
    }


def test_the_stages_leave_what_the_readme_draws(ran):
    drawn = {"run.json", "config.yaml", "log.txt"}
    trained = drawn | {"metrics.jsonl", "samples.jsonl", "checkpoints"}
    files = {
        "tokenizer": drawn
        | {"tokenizer.json", "tokenizer_config.json", "tokenizer.sha256", "chat_template.jinja", "report.json"},
        "documents": drawn | {"documents"},
        "shards": drawn | {"shards"},
        "pretrain": trained | {"model"},
        "finetune": trained | {"adapter"},
    }
    folders = [path.parent for path in ran.outputs.glob("*/*/run.json")]
    assert {path.parent.name for path in folders} == set(files)
    for path in folders:
        assert {file.name for file in path.iterdir()} - {".lock"} == files[path.parent.name], path
    readme = REFERENCE.read_text(encoding="utf-8")
    assert all(name in readme for names in files.values() for name in names)


def test_the_metrics_have_the_keys_of_the_readme(ran):
    readme = REFERENCE.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:train|val|throughput|memory)/\w+)`", readme))
    for path in ran.outputs.glob("*/first-*/metrics.jsonl"):
        keys = {key for line in path.read_text(encoding="utf-8").splitlines() for key in json.loads(line)}
        assert named and {"step", "tokens", "seconds"} | named <= keys  # docs/numbers.md has them all


def test_the_multirun_crosses_its_settings_and_shares_its_parents(ran):
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


def test_the_tuned_model_answers(ran):
    (tuned,) = records(ran, "finetune")
    assert tuned["name"] == "first" and tuned["results"]["trainable_parameters"] > 0
    assert "the fine-tuned one is meant" in ran.said["chat"].stderr + ran.said["chat"].stdout
    assert ran.said["chat"].stdout.strip()
