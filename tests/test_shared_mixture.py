"""Several processes that make the shards of one mixture: each takes the parts that nobody is at, to the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.config.stages import ShardsStage
from llm.run.runs import Run, load
from llm.stage import run_stage, shards
from tests.korean import documents
from tests.patience import PATIENCE
from tests.test_config import config_of

ROOT = Path(__file__).parents[1]
PARTS = ("law", "news", "talk")
SETTINGS = ("tokenizer=char_bpe", "tokenizer.vocab_size=500", "tokenizer.initial_alphabet=none")

# Holds a run as another process would, until the file `let_go` is there, or for ten minutes.
HOLDER = """
import sys, time
from pathlib import Path
from llm.run.owner import owned
folder, let_go = Path(sys.argv[1]), Path(sys.argv[2])
with owned(folder, wait=False):
    print("held", flush=True)
    deadline = time.monotonic() + 600
    while not let_go.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
"""

# The shards of the mixture on a host of a name: at its first shard, of 8 kB of text, a process waits until as many are
# at one as are told, or for ever. An owner that died is waited for two seconds.
MAKER = """
import socket, sys, time
from pathlib import Path
outputs, host, together = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
socket.gethostname = lambda: host
import llm.data.documents as documents
import llm.data.shards as sharding
import llm.run.owner as owner
from llm.stage import run_stage
from tests.test_shared_mixture import mixture
documents.FILE_BYTES, owner.DEAD_AFTER_SECONDS, owner.BEAT_SECONDS = 8000, 2.0, 0.5
write = sharding.Encoder.write
def together_at_first(encoder, file, folder):
    (outputs.parent / f"at-a-shard-{host}").touch()
    while len(list(outputs.parent.glob("at-a-shard-*"))) < together:
        time.sleep(0.02)
    return write(encoder, file, folder)
sharding.Encoder.write = together_at_first
run_stage(mixture(outputs))
"""


def mixture(outputs: Path) -> ShardsStage:
    """Of the parts whose text lies beside the folder of runs."""
    parts = ", ".join(f"{name}: {{use: text, path: {outputs.parent}/{name}.jsonl}}" for name in PARTS)
    typed = ("data=mixture", f"data.parts={{{parts}}}", "data.held_out_share=0.2", "data.num_workers=1")
    config = config_of("stage=shards", *typed, *SETTINGS, "logger=local", f"outputs={outputs}")
    assert isinstance(config, ShardsStage)
    return config


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], Path]:
    """(a folder for runs with the text beside it, what one process made of the mixture there, the shards of law)."""
    folder = tmp_path_factory.mktemp("mixture")
    for seed, name in enumerate(PARTS):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents(250, seed=seed)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert start(MAKER, str(folder / "outputs"), "one", "1").wait(PATIENCE) == 0
    return folder / "outputs", made(folder / "outputs"), runs(folder / "outputs")["law"].path


@pytest.fixture
def outputs(by_one: tuple[Path, dict[str, bytes], Path]) -> Path:
    """That folder with the mixture's documents and tokenizer in it, and no shards."""
    shutil.rmtree(by_one[0] / "shards")
    for left in by_one[0].parent.glob("at-a-shard-*"):
        left.unlink()
    return by_one[0]


def start(script: str, *arguments: str, stdout: int | None = None) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT, env=environment, stdout=stdout)


def runs(outputs: Path) -> dict[str, Run]:
    """The finished shards runs by what they are of: a part's name, or mixture."""
    found = [load(path.parent) for path in outputs.glob("shards/*/run.json")]
    return {
        "mixture" if "parts" in run.results else Path(run.config["data"]["path"]).stem: run
        for run in found
        if run.is_done
    }


def made(outputs: Path) -> dict[str, bytes]:
    """Every file of shards, and what the mixture's run says."""
    files = {
        f"{name}/{path.name}": path.read_bytes()
        for name, run in runs(outputs).items()
        for path in run.path.glob("shards/*")
    }
    whole = runs(outputs)["mixture"].record
    return files | {"mixture": json.dumps([whole[key] for key in ("results", "digest", "notes")]).encode()}


def test_a_part_that_another_process_makes_is_left_for_the_last(
    by_one: tuple[Path, dict[str, bytes], Path], outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    law, let_go = by_one[2], tmp_path / "let_go"
    begun: list[str] = []
    write = shards._write

    def noted(run: Run, config: ShardsStage, *more: Any) -> Any:
        begun.append(Path(str(config.data.path)).stem)
        if begun == ["news", "talk"]:
            let_go.touch()
        return write(run, config, *more)

    monkeypatch.setattr(shards, "_write", noted)
    with start(HOLDER, str(law), str(let_go), stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        run_stage(mixture(outputs))
        assert holder.wait(PATIENCE) == 0
    assert begun == ["news", "talk", "law"]


@pytest.mark.parametrize("is_killed", [False, True])
def test_two_processes_share_a_mixture_to_the_bytes_of_one(
    by_one: tuple[Path, dict[str, bytes], Path], outputs: Path, is_killed: bool
) -> None:
    assert len(by_one[1]) > 40
    first = start(MAKER, str(outputs), "a", "9" if is_killed else "2")
    second = start(MAKER, str(outputs), "b", "2")
    if is_killed:
        wait_for(lambda: len(list(outputs.parent.glob("at-a-shard-*"))) == 2)
        first.kill()
    assert first.wait(PATIENCE) == (-signal.SIGKILL if is_killed else 0)
    assert second.wait(PATIENCE) == 0
    assert made(outputs) == by_one[1]
    hosts = {run.record["host"] for run in runs(outputs).values()}
    assert hosts == ({"b"} if is_killed else {"a", "b"})


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
