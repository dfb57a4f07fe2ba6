"""What comes over an online run midway: a server that dies or hangs, for good or for a while."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from llm.sync import look
from tests.test_sync import sync
from tests.test_wandb_online import (
    CONFIG,
    FINISH_SECONDS,
    RUN_ID,
    attempt,
    expected,
    steps_and_tokens,
)
from tests.wandb_server import WandbServer

RECORDS = 500  # 0.01 s apart


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs" / "pretrain" / "first-0123abcd"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    record = {"stage": "pretrain", "name": "first", "key": "0123abcd", "status": "done", "results": {"val/loss": 2.5}}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return tmp_path / "outputs"


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


@pytest.mark.parametrize("comes_back", [False, True], ids=["for good", "for a while"])
@pytest.mark.parametrize("how", ["dies", "hangs"])
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
    has_all = len(server.history(RUN_ID)) == RECORDS and server.exit_code(RUN_ID) == 0
    assert has_all or len(look(outputs).segments) == 1
    synced = sync(server, outputs)
    assert (synced.returncode, steps_and_tokens(server.history(RUN_ID))) == (0, expected(RECORDS)), synced.stderr
    assert (server.exit_code(RUN_ID), list(server.runs)) == (0, [RUN_ID])
    assert server.summary(RUN_ID)["val/bits_per_byte"] == 1.25
    assert not look(outputs).segments
