"""What comes over an online run midway: a server that dies or hangs; a press of the stop button."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from korean import documents

from llm.run.metrics import read_metrics
from llm.run.runs import load
from tests.patience import PATIENCE
from tests.wandb_attempts import (
    FINISH_SECONDS,
    ROOT,
    RUN_ID,
    attempt,
    begin_run,
    environment,
    expected,
    steps_and_tokens,
    sync,
)
from tests.wandb_server import WandbServer

RECORDS = 500  # 0.01 s apart
TRAIN = """
import runpy, sys
from llm.logger import live
live.FOLLOW_SECONDS = 0.3
sys.argv[0] = {path!r}
runpy.run_path({path!r}, run_name="__main__")
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return begin_run(tmp_path / "outputs")


def in_the_midst(server: WandbServer, does: Callable[[], object]) -> threading.Thread:
    """Have something done while the run logs: the client sends what it has only every 15 seconds, and at the end."""

    def wait() -> None:
        wait_for(lambda: RUN_ID in server.runs, 60)
        time.sleep(1)
        does()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hang(_asked: str) -> int:
    time.sleep(4 * FINISH_SECONDS)
    return 503


@pytest.mark.parametrize(("how", "comes_back"), [("dies", False), ("hangs", False), ("dies", True)])
def test_a_server_that_fails_midway_stops_nothing_and_sync_brings_the_rest_once(
    how: str, comes_back: bool, server: WandbServer, outputs: Path
) -> None:
    def fail() -> None:
        before = server.fault
        if how == "dies":
            server.die()
        else:
            server.fault = hang
        if comes_back:
            time.sleep(1)
            server.fault = before
            if how == "dies":
                server.come_back()

    failing = in_the_midst(server, fail)
    seconds, said = attempt(server, outputs, 0, RECORDS)
    failing.join()
    assert "wandb is online" in said and "Traceback" not in said
    assert seconds["log"] < 2 * RECORDS * 0.01 + 2  # none waits for the server
    assert seconds["finish"] < FINISH_SECONDS + 5
    if not comes_back:
        assert len(server.history(RUN_ID)) < RECORDS
        assert "Upload the rest: python -m llm.sync" in said
        server.fault = lambda _: None
        if how == "dies":
            server.come_back()
    synced = sync(server, outputs)
    assert (synced.returncode, steps_and_tokens(server.history(RUN_ID))) == (0, expected(RECORDS)), synced.stderr
    assert (server.exit_code(RUN_ID), list(server.runs)) == (0, [RUN_ID])
    assert server.summary(RUN_ID)["val/bits_per_byte"] == 1.25
    assert "0 runs uploaded" in sync(server, outputs).stderr


def test_a_training_that_the_stop_button_ended_goes_on_in_the_same_wandb_run(
    server: WandbServer, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(documents(150)), encoding="utf-8")
    words = [
        *("data=text", "data.path=text.txt", "data.held_out_share=0.2", "data.sequence_length=64", "data.batch_size=4"),
        *("tokenizer.initial_alphabet=none", "tokenizer.vocab_size=400", "model.num_layers=1", "model.num_heads=2"),
        *("model.hidden_size=16", "trainer.max_steps=1500", "trainer.validate_every_steps=500"),
        "trainer.sample_tokens=2",
    ]

    def start() -> "subprocess.Popen[str]":
        own = environment(server, tmp_path) | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-c", TRAIN.format(path=str(ROOT / "train.py")), *words]
        return subprocess.Popen(command, cwd=tmp_path, env=own, stderr=subprocess.PIPE, text=True)

    server.stop_button = True
    process = start()
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 75, said
    assert "the stop button in W&B asks the run to stop: it saves, and ends" in said
    server.stop_button = False
    [run_id] = server.runs
    [folder] = tmp_path.glob("outputs/pretrain/*")
    assert load(folder).state == "unfinished"
    process = start()
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, said
    records: list[dict[str, Any]] = read_metrics(folder / "metrics.jsonl")
    assert records[-1]["step"] == 1500
    assert [(row["_step"], row["step"]) for row in server.history(run_id)] == [
        (number, record["step"]) for number, record in enumerate(records)
    ]
    assert (list(server.runs), server.exit_code(run_id)) == ([run_id], 0)
