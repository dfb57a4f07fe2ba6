"""A small run that is logged to W&B's real client, against a server on loopback: what the tests of W&B share."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from llm.config.training import LoggerConfig, WandbMode
from llm.logger import live
from llm.run.record import MetricsLog
from llm.run.runs import Run, load
from tests.patience import PATIENCE
from tests.wandb_server import WandbServer

ROOT = Path(__file__).parents[1]
RUN_ID = "pretrain-first-0123abcd"
CONFIG = {
    "stage": "pretrain",
    "model": {"name": "gpt2_tiny"},
    "data": {"path": None},
    "logger": {"mode": "auto", "group": "a sweep"},
}
RESULTS = {"val/bits_per_byte": 1.25}
LIMITS = {"FOLLOW_SECONDS": 0.05, "LOGIN_SECONDS": 60, "START_SECONDS": 60, "FINISH_SECONDS": 90, "END_SECONDS": 120}


def begin_run(outputs: Path, *, status: str = "done", records: int = 0) -> Path:
    """Make the folder of the run RUN_ID, as far as W&B is told of it; gives `outputs`."""
    folder = outputs / "pretrain" / "first-0123abcd"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    record = {"stage": "pretrain", "name": "first", "key": "0123abcd", "status": status, "results": RESULTS}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    write_lines(folder / "metrics.jsonl", [record_of(number) for number in range(records)])
    return outputs


def run_of(outputs: Path) -> Run:
    return load(outputs / "pretrain" / "first-0123abcd")


def record_of(number: int) -> dict[str, Any]:
    return {"step": number, "tokens": 10 * number, "train/loss": 1 / (number + 1)}


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(text, encoding="utf-8")


def log_records(
    outputs: Path,
    first: int,
    last: int,
    *,
    mode: WandbMode = WandbMode.auto,
    midway: Callable[[], object] = lambda: None,
) -> None:
    """Log the run as a training does that goes on after `first` records; `midway` is called between two of them."""
    run = run_of(outputs)
    with live.open_logger(LoggerConfig(mode=mode, group="a sweep"), run, outputs=outputs) as logger:
        kept = "".join(json.dumps(record_of(number)) + "\n" for number in range(first))
        file = MetricsLog(run.path / "metrics.jsonl", size=len(kept))
        logger.follow()
        for number in range(first, last):
            if number == (first + last) // 2:
                midway()
            file.append(record_of(number))
        file.close()
        logger.summarize(RESULTS)


def environment(server: WandbServer, outputs: Path) -> dict[str, str]:
    """This process's, without a login of whoever runs the tests, and with the server's."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return own | {
        "NETRC": str(outputs / "netrc"),
        "WANDB_CONFIG_DIR": str(outputs / "config"),
        "PYTHONPATH": str(ROOT),
        **server.environment,
    }


def use_server(server: WandbServer, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Have wandb know this server alone in this process, as if it was imported now, with the time of a slow machine."""
    wandb.teardown()
    own = {"WANDB_HTTP_TIMEOUT": "", **environment(server, folder)}
    for name in set(os.environ) - set(own):
        patch.delenv(name)
    for name, value in own.items():
        patch.setenv(name, value)
    patch.delenv("WANDB_HTTP_TIMEOUT")  # what a test sets is gone with it
    for name, seconds in LIMITS.items():
        patch.setattr(live, name, seconds)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[WandbServer]:
    """The server of this process."""
    caplog.set_level("INFO", "llm")
    monkeypatch.setattr("llm.sync.start_logging", lambda: None)  # caplog is told
    with WandbServer() as server:
        use_server(server, tmp_path, monkeypatch)
        yield server
        with suppress(Exception):  # of a service that a test has killed
            wandb.teardown()


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return begin_run(tmp_path / "outputs")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "llm"]


def steps_and_tokens(history: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(row["_step"], row["tokens"]) for row in history]


def expected(records: int) -> list[tuple[int, int]]:
    return [(number, 10 * number) for number in range(records)]


def sync(server: WandbServer, outputs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """llm.sync, as a user types it."""
    command = [sys.executable, "-m", "llm.sync", "--outputs", str(outputs), *arguments]
    return subprocess.run(
        command, cwd=outputs, env=environment(server, outputs), capture_output=True, text=True, timeout=PATIENCE
    )


def die() -> None:
    time.sleep(1)  # what was logged is on its way
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    vars(live).update(LIMITS)
    log_records(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), midway=die)
