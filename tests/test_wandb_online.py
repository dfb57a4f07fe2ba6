"""The real W&B client against a server on loopback: what people see there, after kills and with a server that fails."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import wandb

from llm.config.training import LoggerConfig, WandbMode
from llm.environment import JOB_FOLDER
from llm.errors import DivergedError
from llm.logger import live
from llm.logger.live import open_logger
from llm.logger.view import tag
from llm.run.launch import JOB
from llm.sync import find, main, upload
from tests.patience import PATIENCE
from tests.wandb_attempts import (
    CONFIG,
    ROOT,
    RUN_ID,
    expected,
    log_records,
    outputs,
    run_of,
    said,
    server,
    steps_and_tokens,
    write_lines,
)
from tests.wandb_server import WandbServer

__all__ = ["outputs", "server"]


def test_an_online_run_has_its_records_samples_config_group_and_results(
    server: WandbServer, outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(outputs)
    samples = [{"step": step, "prompt": "대한", "text": f"민국 {step}"} for step in range(12)]
    records = [{"step": step, "tokens": 10 * step, "val/loss": 1.0} for step in range(12)]
    write_lines(run.path / "samples.jsonl", samples)
    write_lines(run.path / "metrics.jsonl", records)
    with open_logger(LoggerConfig(group="a sweep"), run, outputs=outputs) as logger:
        logger.follow()
        logger.summarize({"val/bits_per_byte": 1.25})
    assert said(caplog)[0].startswith(f"wandb is online, for a login was found: {server.url}/")
    assert steps_and_tokens(server.history(RUN_ID)) == expected(12)
    assert server.config(RUN_ID) == CONFIG
    named = [server.runs[RUN_ID][name] for name in ("groupName", "jobType", "displayName")]
    assert named == ["a sweep", "pretrain", "first-0123abcd"]
    assert (server.summary(RUN_ID)["val/bits_per_byte"], server.exit_code(RUN_ID)) == (1.25, 0)
    tables = [json.loads(body)["data"] for path, body in server.uploaded.items() if "/media/table/samples_" in path]
    rows = [[each["step"], each["prompt"], each["text"]] for each in samples]
    over_time = max(tables, key=len)  # at the end all of them, and else each once
    assert over_time == rows
    assert sorted(row for table in tables if table is not over_time for row in table) == rows


def test_a_job_of_a_sweep_has_its_group_and_its_tags_after_a_sync_too(
    server: WandbServer, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = outputs / "sweeps" / "rates-89abcdef" / "jobs" / "0000"
    job.mkdir(parents=True)
    (job / JOB).write_text(json.dumps({"varying": ["optimizer.learning_rate=0.01", "name=first"]}))
    monkeypatch.setenv(JOB_FOLDER, str(job))
    for mode in ("auto", "offline"):
        server.runs.clear()
        with open_logger(LoggerConfig(mode=WandbMode[mode], tags=["mine"]), run_of(outputs), outputs=outputs):
            pass
        if mode == "offline":
            monkeypatch.delenv(JOB_FOLDER)
            [shown] = find(outputs)[0]
            upload(shown, outputs)
        there = server.runs[RUN_ID]
        assert (there["groupName"], there["jobType"]) == ("rates-89abcdef", "pretrain")
        assert there["tags"] == ["mine", "optimizer.learning_rate=0.01"]


def test_a_tag_keeps_to_the_64_characters_that_wandb_takes() -> None:
    assert tag("optimizer.learning_rate", "0.01") == "optimizer.learning_rate=0.01"
    assert tag("a." * 40 + "rate", "0.01").endswith("a.rate=0.01")
    assert len(tag("a." * 40 + "rate", "0.01")) == 64


def test_a_run_that_diverges_is_told_of_once(server: WandbServer, outputs: Path) -> None:
    with pytest.raises(DivergedError), open_logger(LoggerConfig(), run_of(outputs), outputs=outputs):
        raise DivergedError("val/loss is nan at step 3.")
    [alert] = server.alerts
    assert (alert["title"], alert["text"]) == ("The run diverged", "val/loss is nan at step 3.")
    assert server.exit_code(RUN_ID) == 70


def test_an_online_run_that_was_killed_goes_on_without_gap_or_repetition(server: WandbServer, outputs: Path) -> None:
    for first, last in ((0, 80), (25, 60)):  # killed after 40 records, of which a checkpoint has 25; and once more
        command = [sys.executable, "-m", "tests.wandb_attempts", str(outputs), str(first), str(last)]
        assert subprocess.run(command, cwd=ROOT, timeout=PATIENCE).returncode == -signal.SIGKILL
    log_records(outputs, 25, 70)
    assert steps_and_tokens(server.history(RUN_ID)) == expected(70)
    assert list(server.runs) == [RUN_ID]


def test_the_stop_button_asks_the_process_to_save_and_end(
    server: WandbServer, outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard = threading.Event()
    server.stop_button = True
    before = signal.signal(signal.SIGTERM, lambda *_: heard.set())
    try:
        log_records(outputs, 0, 4, midway=lambda: heard.wait(PATIENCE))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard.is_set()
    assert "the stop button in W&B asks the run to stop: it saves, and ends" in said(caplog)


# A server that fails


def hang(_asked: str) -> None:
    threading.Event().wait(30)  # longer than the tests' limits


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda _: 500, "for logging in failed"),
        (hang, "for logging in failed"),
        (lambda asked: hang(asked) if asked == "UpsertBucket" else None, "for it could not start online"),
    ],
    ids=["500", "hanging", "hanging after the login"],
)
def test_a_server_that_fails_from_the_start_leaves_the_run_offline(
    fault: Any, reason: str, server: WandbServer, outputs: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(live, "LOGIN_SECONDS" if "logging in" in reason else "START_SECONDS", 1)
    server.fault = fault
    log_records(outputs, 0, 4)
    [line] = said(caplog)
    assert line.startswith(f"wandb is offline, {reason}") and line.endswith("Upload: python -m llm.sync")
    assert server.runs == {}


def freeze_service() -> None:
    from wandb.sdk import wandb_setup

    connection: Any = wandb_setup.singleton()._connection
    os.kill(connection._proc._process.pid, signal.SIGSTOP)


@pytest.mark.parametrize("what", ["dies", "hangs", "refuses", "helper freezes"])
def test_what_fails_midway_stops_nothing_is_said_once_and_sync_brings_the_rest(
    what: str, server: WandbServer, outputs: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FINISH_SECONDS", 2)
    monkeypatch.setattr(live, "END_SECONDS", 6)
    faults = {"hangs": hang, "refuses": lambda asked: 401 if asked.endswith("file_stream") else None}

    def fail() -> None:
        if what == "dies":
            server.die()
        elif what == "helper freezes":
            freeze_service()
        else:
            server.fault = faults[what]

    log_records(outputs, 0, 50, midway=fail)
    [line] = [line for line in said(caplog) if "Upload the rest: python -m llm.sync" in line]
    assert line.startswith("wandb did not get everything") or line.startswith("wandb is left out from here on")
    assert len(server.history(RUN_ID)) < 50
    server.fault = lambda _: None
    if what == "dies":
        server.come_back()
    wandb.teardown()
    main(["--outputs", str(outputs)])
    assert steps_and_tokens(server.history(RUN_ID)) == expected(50)
    assert (list(server.runs), server.exit_code(RUN_ID)) == ([RUN_ID], 0)
