"""The real W&B client against a server on loopback: what it has after kills, a sync, and a server that fails."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.wandb_server import WandbServer

ROOT = Path(__file__).parents[1]
RUN_ID = "pretrain-first-0123abcd"
CONFIG = {"stage": "pretrain", "model": {"name": "gpt2_tiny"}}
START_SECONDS = 30  # 10 on a quiet machine (benchmarks.wandb_cost); wandb's own limits are 90 and more
FINISH_SECONDS = 4  # the limit of the tests; llm.logger's own is a minute

# argv: outputs, records that a checkpoint has, records at the end, how it ends, logger.mode, seconds to finish in.
# Prints the seconds of each phase.
ATTEMPT = """
import json, logging, os, signal, sys, time
from pathlib import Path
from llm.config import LoggerConfig, WandbMode
from llm.logger import open_logger
from llm.run import Run
outputs, first, last, how, mode = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
run = Run(outputs / "pretrain" / "first-0123abcd", {"stage": "pretrain", "name": "first"})
records = [{"step": n, "tokens": 10 * n, "train/loss": 1 / (n + 1)} for n in range(last)]
import llm.logger.view
llm.logger.view.FINISH_TIMEOUT_SECONDS = int(sys.argv[6])
logging.basicConfig(level=logging.INFO, format="%(message)s")
began = time.monotonic()
with open_logger(LoggerConfig(mode=WandbMode(mode), group="a sweep"), run, outputs=outputs) as logger:
    started = time.monotonic()
    logger.go_on(records[:first])
    for record in records[first:]:
        logger.log(record)
        time.sleep(0.01)
    logged = time.monotonic()
    if how != "end":
        time.sleep(float(how))
        os.kill(os.getpid(), signal.SIGKILL)
    logger.summarize({"val/bits_per_byte": 1.25})
ended = time.monotonic()
print(json.dumps({"start": started - began, "log": logged - started, "finish": ended - logged}))
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs" / "pretrain" / "first-0123abcd"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return tmp_path / "outputs"


def environment(server: WandbServer, outputs: Path) -> dict[str, str]:
    """This process's, without a login of whoever runs the tests, and with the server's."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return own | {
        "NETRC": str(outputs / "netrc"),
        "WANDB_CONFIG_DIR": str(outputs / "config"),
        "PYTHONPATH": str(ROOT),
        **server.environment,
    }


def attempt(
    server: WandbServer, outputs: Path, first: int, last: int, how: str = "end", *, mode: str = "auto"
) -> tuple[dict[str, float], str]:
    """(seconds by phase, what was said) of a process that logs up to `last`, and ends or is killed."""
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPT, str(outputs), str(first), str(last), how, mode, str(FINISH_SECONDS)],
        env=environment(server, outputs),
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == (0 if how == "end" else -9), done.stderr
    return json.loads(done.stdout or "{}"), done.stderr


def steps_and_tokens(history: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(row["_step"], row["tokens"]) for row in history]


def expected(records: int) -> list[tuple[int, int]]:
    return [(number, 10 * number) for number in range(records)]


def segments(outputs: Path) -> list[Path]:
    """Of the oldest first."""
    return sorted(path for path in (outputs / "wandb").glob("*run-*") if path.is_dir() and not path.is_symlink())


def test_an_online_run_has_its_records_config_group_and_results(server: WandbServer, outputs: Path) -> None:
    _, said = attempt(server, outputs, 0, 20)
    assert "wandb is online, for a login was found" in said
    assert steps_and_tokens(server.history(RUN_ID)) == expected(20)
    assert server.config(RUN_ID) == CONFIG
    assert {name: server.runs[RUN_ID][name] for name in ("groupName", "jobType", "displayName")} == {
        "groupName": "a sweep",
        "jobType": "pretrain",
        "displayName": "first-0123abcd",
    }
    assert server.summary(RUN_ID)["val/bits_per_byte"] == 1.25
    assert server.exit_code(RUN_ID) == 0


@pytest.mark.parametrize("pause", ["0", "3"], ids=["at once", "later"])
def test_an_online_run_that_was_killed_goes_on_without_gap_or_repetition(
    pause: str, server: WandbServer, outputs: Path
) -> None:
    attempt(server, outputs, 0, 40, pause)  # killed after 40 records, of which a checkpoint has 25
    attempt(server, outputs, 25, 60, pause)  # and again, before it had a checkpoint of its own
    attempt(server, outputs, 25, 70)
    assert steps_and_tokens(server.history(RUN_ID)) == expected(70)
    assert list(server.runs) == [RUN_ID]


def test_offline_segments_of_a_killed_run_sync_as_one_run(server: WandbServer, outputs: Path) -> None:
    attempt(server, outputs, 0, 40, "2.5", mode="offline")
    attempt(server, outputs, 25, 70, mode="offline")
    assert server.runs == {}
    sync(server, outputs)
    assert steps_and_tokens(server.history(RUN_ID)) == expected(70)
    assert list(server.runs) == [RUN_ID]


def sync(server: WandbServer, outputs: Path) -> None:
    """Upload every segment, the oldest first, as the log tells a user to."""
    for segment in segments(outputs):
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(segment)]
        subprocess.run(
            command, cwd=outputs, env=environment(server, outputs), check=True, capture_output=True, timeout=120
        )


def hang(_asked: str) -> None:
    time.sleep(40)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda _: 401, "for logging in failed"),
        (lambda _: 500, "for logging in failed"),
        (hang, "for logging in failed"),
        (lambda asked: 500 if asked == "UpsertBucket" else None, "for it could not start online"),
        (lambda asked: hang(asked) if asked == "UpsertBucket" else None, "for it could not start online"),
    ],
    ids=["401", "500", "hanging", "500 after the login", "hanging after the login"],
)
def test_a_server_that_fails_from_the_start_leaves_the_run_offline_and_whole(
    fault: Any, reason: str, server: WandbServer, outputs: Path
) -> None:
    server.fault = fault
    seconds, said = attempt(server, outputs, 0, 20)
    assert f"wandb is offline, {reason}" in said
    assert seconds["start"] < START_SECONDS
    server.fault = lambda _: None
    sync(server, outputs)
    assert steps_and_tokens(server.history(RUN_ID)) == expected(20)


@pytest.mark.parametrize(
    "fault",
    [
        lambda asked: 500 if asked.endswith("file_stream") else None,
        lambda asked: hang(asked) if asked.endswith("file_stream") else None,
    ],
    ids=["500", "hanging"],
)
def test_a_server_that_fails_midway_slows_nothing_and_loses_nothing(
    fault: Any, server: WandbServer, outputs: Path
) -> None:
    server.fault = fault
    seconds, said = attempt(server, outputs, 0, 100)
    assert "wandb did not get everything (Timed out finishing run). Upload the rest: python -m llm.sync" in said
    assert seconds["log"] < 100 * 0.01 + 2  # 100 records, 0.01 s apart: none waits for the server
    assert seconds["finish"] < FINISH_SECONDS + 5
    server.fault = lambda _: None
    sync(server, outputs)
    assert steps_and_tokens(server.history(RUN_ID)) == expected(100)
