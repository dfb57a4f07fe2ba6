"""llm.sync: runs that W&B has not got whole, shown by the real client on a server on loopback as they would be live."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm.config.training import LoggerConfig, WandbMode
from llm.logger.view import describe, keep_description
from llm.sync import main
from tests.patience import PATIENCE
from tests.wandb_attempts import (
    CONFIG,
    ROOT,
    RUN_ID,
    begin_run,
    environment,
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


def sync(outputs: Path, caplog: pytest.LogCaptureFixture, *arguments: str) -> str:
    """The last line of what it says."""
    main(["--outputs", str(outputs), *arguments])
    return said(caplog)[-1]


def test_a_run_is_uploaded_once_whatever_is_in_the_folder_of_wandb(
    server: WandbServer, outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log_records(outputs, 0, 40, mode=WandbMode.offline)
    log_records(outputs, 25, 70, mode=WandbMode.offline)
    assert sync(outputs, caplog, "--dry-run") == "1 runs wait; W&B had 0 whole, 0 are being made"
    assert server.runs == {}
    assert sync(outputs, caplog) == "1 runs uploaded; W&B had 0 whole, 0 are being made"
    assert steps_and_tokens(server.history(RUN_ID)) == expected(70)
    asked = server.asked.count("UpsertBucket")
    assert sync(outputs, caplog) == "0 runs uploaded; W&B had 1 whole, 0 are being made"
    assert server.asked.count("UpsertBucket") == asked


def test_a_run_is_shown_as_it_is_live_but_for_the_machine(server: WandbServer, tmp_path: Path) -> None:
    shown = []
    for mode in ("offline", "online"):
        outputs = begin_run(tmp_path / mode)
        run = run_of(outputs)
        write_lines(run.path / "samples.jsonl", [{"step": n, "prompt": "가", "text": f"나 {n}"} for n in (3, 3, 6)])
        (run.path / "model").mkdir()
        (run.path / "model" / "config.json").write_text("{}", encoding="utf-8")
        log_records(outputs, 0, 10, mode=WandbMode[mode])
        if mode == "offline":
            assert server.runs == {}
            main(["--outputs", str(outputs)])
        history = [{k: v for k, v in row.items() if k not in OF_TIME} for row in server.history(RUN_ID)]
        summary = {k: v for k, v in server.summary(RUN_ID).items() if k not in OF_TIME}
        about = {key: server.runs[RUN_ID].get(key) for key in ABOUT}
        tables = sorted(body for path, body in server.uploaded.items() if "/media/table/" in path)
        artifacts = [(each["artifactCollectionName"], each["digest"]) for each in server.artifacts.values()]
        shown.append([history, summary, about, server.config(RUN_ID), tables, artifacts, server.exit_code(RUN_ID)])
        assert [path for path in server.uploaded if path.endswith("metadata.json")] == [
            f"/upload/{RUN_ID}/wandb-metadata.json"
        ] * (mode == "online")
        for kept in (server.runs, server.artifacts, server.uploaded, server._streams, server._ended):
            kept.clear()
    assert without_paths(shown[0]) == without_paths(shown[1])


ABOUT = ("groupName", "jobType", "displayName", "tags", "project")
OF_TIME = ("_timestamp", "_runtime", "_wandb")


def without_paths(value: Any) -> Any:
    """What is shown, with tables told by what they hold and not by the name of their file."""
    if isinstance(value, dict):
        return {key: without_paths(each) for key, each in value.items() if "path" not in key}
    return list(map(without_paths, value)) if isinstance(value, list) else value


def test_a_sync_that_was_killed_midway_goes_on(server: WandbServer, tmp_path: Path) -> None:
    outputs = begin_run(tmp_path / "outputs", records=2000)
    command = [sys.executable, "-m", "llm.sync", "--outputs", str(outputs)]
    process = subprocess.Popen(command, env=environment(server, outputs), cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not server.history(RUN_ID) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    main(["--outputs", str(outputs)])
    assert steps_and_tokens(server.history(RUN_ID)) == expected(2000)
    assert (list(server.runs), server.exit_code(RUN_ID)) == ([RUN_ID], 0)


def test_an_unfinished_run_is_sent_as_far_as_it_is_and_the_rest_when_it_is_done(
    server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = begin_run(tmp_path / "outputs", status="running", records=20)
    keep_description(run := run_of(outputs), describe(LoggerConfig(), run))  # as of a run that was killed
    assert "1 runs uploaded" in sync(outputs, caplog)
    assert "0 runs uploaded; W&B had 1 whole" in sync(outputs, caplog)
    assert server.exit_code(RUN_ID) == 75
    begin_run(tmp_path / "outputs", records=30)
    assert "1 runs uploaded" in sync(outputs, caplog)
    assert (steps_and_tokens(server.history(RUN_ID)), server.exit_code(RUN_ID)) == (expected(30), 0)


def test_what_was_made_without_wandb_and_on_the_way_of_another_stage_stays_here(
    server: WandbServer, outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = outputs / "pretrain/first-0123abcd/config.yaml"
    for logger in ({"mode": "disabled"}, None):
        config.write_text(yaml.safe_dump(CONFIG | {"logger": logger}), encoding="utf-8")
        assert "0 runs uploaded; W&B had 0 whole" in sync(outputs, caplog)
    assert server.asked == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda asked: 401 if asked == "Runs" else None, "W&B does not say what it has"),
        (lambda asked: 401 if asked.endswith("file_stream") else None, "could not be uploaded"),
    ],
    ids=["question", "records"],
)
def test_a_server_that_refuses_is_said_in_one_line_and_the_same_command_goes_on(
    fault: Any, message: str, server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = begin_run(tmp_path / "outputs", records=10)
    server.fault = fault
    with pytest.raises(SystemExit) as ended:
        main(["--outputs", str(outputs)])
    assert ended.value.code == 74
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line
    server.fault = lambda _: None
    main(["--outputs", str(outputs)])
    assert steps_and_tokens(server.history(RUN_ID)) == expected(10)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--outputs", str(tmp_path / "nowhere")])
    assert ended.value.code == 2
    assert "is no folder. Give the one that the runs are in." in capsys.readouterr().err
