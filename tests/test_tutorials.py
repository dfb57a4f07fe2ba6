"""Each command of the tutorials and how-to pages, one after the other in one folder, on small data with tiny models."""

import re
import shlex
import sys
import zipfile
from io import StringIO
from itertools import product
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from korean import documents, sentences
from test_readme import ROOT, TUTORIALS, in_process

from llm.config.compose import from_hydra
from llm.dry_run.table import show
from llm.stage import run_stage
from tests.tuned import CHATS, quick_peak, write_lines

assert quick_peak  # a fixture
README = (ROOT / "README.md").read_text(encoding="utf-8")
(HOW_TO,) = re.findall(r"^- \*\*How to\*\*: (.*)$", README, re.MULTILINE)
PAGES = [path for path in TUTORIALS if ".ko" not in path.name]
PAGES += [ROOT / link for link in re.findall(r"\]\((docs/[\w.]+)\)", HOW_TO)]
PROGRAMS = r"python|make|\.|eval|git|pip|sbatch|srun|wandb|llama-cli|ollama"
NOT_HERE = {  # what a command has in it -> why it does not run here, or which test runs it
    r"^(make|\.|git|pip) ": "sets up what the tests run in",
    r"hydra/launcher=slurm|^(sbatch|srun) ": "needs a Slurm cluster: tests/test_slurm_cluster.py",
    r"torch\.distributed\.run|trainer\.devices=": "needs several devices or nodes: tests/test_ranks.py",
    r"export\.gguf|^llama-cli|test_export_gguf": "needs llama.cpp: tests/test_export_gguf.py",
    r"sweep=|hydra\.sweeper": "a search or a recorded sweep: tests/test_sweep_search.py",
    r"sweeps/tokenizers": "reads a recorded sweep: tests/test_compare_sweep.py",
    r"^wandb |llm\.sync": "needs a server: tests/test_wandb_sweep.py, tests/test_sync.py",
    r"--serve": "serves a page until it is stopped: tests/test_chat_page.py",
}
SHAPE = ["model.num_layers=1", "model.hidden_size=16", "tokenizer.vocab_size=600"]
TEXT = {"data=korean_law": ["data=text", "data.path=data/my-books"]}  # what stands for the data of the demo
CHAT = {"data=korean_law_qa": ["data=conversations", "data.path=data/my-chats.jsonl"]}
TRAINING = ["trainer.max_steps=1", "trainer.sample_tokens=4", "data.batch_size=2", "data.sequence_length=64"]
EVALUATION = ["evaluation.num_items=4", "evaluation.num_prompts=2", "evaluation.max_new_tokens=4"]
SMALL = {  # settings of each stage that make it small
    "tokenizer": ["tokenizer.sample_bytes=40000", "data.held_out_share=0.2"],
    "shards": ["data.held_out_share=0.2"],
    "pretrain": [*TRAINING, "logger=local"],
    "finetune": [*TRAINING, "data.held_out_share=0.2", "logger=local"],
    "evaluate": [*EVALUATION, "logger=local"],
    "export": ["logger=local"],
}


def commands(page: Path) -> list[str]:
    """Each line of a block, fenced or indented, that begins as a command does; without what stands behind a #."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = re.findall(r"^```(?:bash|text)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [*re.findall(r"^    (\S.*)$", text, re.MULTILINE), *(line for each in fenced for line in each.splitlines())]
    return [re.sub(r" +# .*", "", line).strip() for line in lines if re.match(rf"({PROGRAMS}) ", line)]


def reason_not_here(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_HERE.items() if re.search(pattern, command)), None)


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
HERE = [command for command in COMMANDS if reason_not_here(command) is None]


def small(words: list[str]) -> list[str]:
    """The words of a command for train.py in a small form, on the text that lies here."""
    stage = next((word.removeprefix("stage=") for word in words if word.startswith("stage=")), "pretrain")
    if not any(word.startswith(("data=", "run=")) for word in words):  # the data of its experiment
        words = [*words, "data=korean_law_qa" if stage == "finetune" else "data=korean_law"]
    words = [new for word in words for new in (TEXT | CHAT).get(word, [word])]
    words = [word.replace("use: korean_law", "use: text, path: data/my-books") for word in words]
    if stage == "pretrain":
        words += ["tokenizer.new_tokens=20"] if "adapt" in " ".join(words) else SHAPE
    elif stage in ("tokenizer", "shards"):
        words += SHAPE[-1:]
    words += ["model.num_heads=4", "model.num_key_value_heads=4"] if "model=llama_125m" in words else []
    is_char = stage == "pretrain" and not re.search("tokenizer=|experiment=", " ".join(words))
    return [*words, *SMALL[stage], *(["tokenizer.initial_alphabet=none"] if is_char else [])]


def train(words: list[str]) -> None:
    """What `python train.py words` does; of a multirun, each of its jobs."""
    swept = [word.split("=")[0] + "=" if re.fullmatch(r"[\w.]+=[^\[({'\"]*,.*", word) else None for word in words]
    if "-m" in words:
        values = [
            [key + value for value in word.removeprefix(key).split(",")] if key else [word]
            for word, key in zip(words, swept, strict=True)
        ]
        for job in product(*values):
            train([word for word in job if word != "-m"])
        return
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = from_hydra(compose("config", overrides=small(words)))
    if config.dry_run:
        show([config])
    else:
        run_stage(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they all ran, in the order of the pages."""
    folder = tmp_path_factory.mktemp("tutorials")
    for name in ("my-books", "books"):
        (folder / "data" / name).mkdir(parents=True)
        text = "\n\n".join(documents(120))
        (folder / "data" / name / "a.txt").write_text(text, encoding="utf-8")
    with zipfile.ZipFile(folder / "data" / "my-set.zip", "w") as packed:
        packed.writestr("a.txt", text)
    write_lines(folder / "data" / "my-chats.jsonl", CHATS)
    (folder / "prompts.txt").write_text("\n".join(sentences(3)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(["seed=1", "name=other"])
        train(["stage=finetune", "data=korean_law_qa", "base=other", "name=demo"])
        for command in HERE:
            words = shlex.split(command)
            if words[:2] == ["python", "train.py"]:
                train(words[2:])
                continue
            if words[2] == "llm.chat":
                words += ["--max-new-tokens", "4"]
                patch.setattr(sys, "stdin", StringIO("전자금융업자는?"))
            code, said = in_process(words[1:])
            assert code in (0, None), f"{command}\n{said}"
    return folder


def test_every_command_runs_here_or_says_why_not(folder: Path) -> None:
    assert all(any(re.search(pattern, command) for command in COMMANDS) for pattern in NOT_HERE)
    for test in re.findall(r"tests/\w+\.py", str(NOT_HERE)):
        assert (ROOT / test).is_file()
    assert len(HERE) > 35 and all(command.startswith("python ") for command in HERE)
    runs = {
        f"{path.parent.parent.name}/{path.parent.name.rpartition('-')[0]}"
        for path in folder.glob("outputs/*/*/run.json")
    }
    assert {f"tokenizer/{name}" for name in ("one", "two", "three", "four", "five")} <= runs
    assert {"finetune/first", "evaluate/first", "export/first", "finetune/adapt", "pretrain/adapt_lora"} <= runs
    assert len(list(folder.glob("outputs/pretrain/*tiny-byte_bpe-text-*"))) == 3  # the fourth job is the run first
    assert {path.name for path in folder.iterdir()} >= {"page.html", "table.md", "answers.jsonl"}
    assert len((folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert {path.suffix for path in folder.glob("outputs/reports/demo-*")} == {".html", ".md"}
