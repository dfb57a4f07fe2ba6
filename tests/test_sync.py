"""llm.sync: runs that W&B has not got whole, shown by the real client on a server on loopback as they would be live."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.patience import PATIENCE
from tests.wandb_attempts import (
    CONFIG,
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

# argv: outputs, records, after which of them wandb's helper process is killed or frozen.
KILLED_HELPER = """
import json, logging, os, signal, sys, time
from pathlib import Path
from llm.config.training import LoggerConfig, WandbMode
from llm.logger.live import open_logger
from llm.run.runs import Run
outputs, last, killed_at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder = outputs / "pretrain" / "first-0123abcd"
logging.basicConfig(level=logging.INFO, format="%(message)s")
with open_logger(LoggerConfig(mode=WandbMode.offline), Run(folder, {"stage": "pretrain"}), outputs=outputs) as logger:
    logger.follow()
    with (folder / "metrics.jsonl").open("w") as file:
        for n in range(last):
            print(json.dumps({"step": n, "tokens": 10 * n, "train/loss": 1 / (n + 1)}), file=file, flush=True)
            if n == killed_at:
                time.sleep(1.5)  # what was logged so far is on the disk
                from wandb.sdk import wandb_setup
                os.kill(wandb_setup.singleton()._connection._proc._process.pid, getattr(signal, sys.argv[4]))
            time.sleep(0.005)
        ended = time.monotonic()
print(json.dumps({"finish": time.monotonic() - ended}))
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return begin_run(tmp_path / "outputs")


def test_a_run_is_uploaded_once(server: WandbServer, outputs: Path) -> None:
    attempt(server, outputs, 0, 40, "0", mode="offline")  # killed
    attempt(server, outputs, 25, 70, mode="offline")
    assert "1 runs wait; W&B had 0 whole, 0 are being made" in sync(server, outputs, "--dry-run").stderr
    assert server.runs == {}
    said = sync(server, outputs)
    assert (said.returncode, steps_and_tokens(server.history(RUN_ID))) == (0, expected(70)), said.stderr
    assert "1 runs uploaded" in said.stderr
    asked = server.asked.count("UpsertBucket")
    assert "0 runs uploaded; W&B had 1 whole" in sync(server, outputs).stderr
    assert server.asked.count("UpsertBucket") == asked


def test_a_run_is_shown_as_it_is_live_but_for_the_machine(server: WandbServer, tmp_path: Path) -> None:
    shown = []
    for mode in ("offline", "online"):
        outputs = begin_run(tmp_path / mode)
        samples = [{"step": step, "prompt": "가", "text": f"나 {step}"} for step in (3, 3, 6)]
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        (outputs / "pretrain/first-0123abcd/samples.jsonl").write_text(lines, encoding="utf-8")
        (outputs / "pretrain/first-0123abcd/model").mkdir()
        (outputs / "pretrain/first-0123abcd/model/config.json").write_text("{}", encoding="utf-8")
        attempt(server, outputs, 0, 10, mode=mode)
        if mode == "offline":
            assert server.runs == {}
            assert sync(server, outputs).returncode == 0
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


def test_a_sync_that_was_killed_midway_goes_on(server: WandbServer, outputs: Path) -> None:
    attempt(server, outputs, 0, 3000, "0", mode="offline")
    command = [sys.executable, "-m", "llm.sync", "--outputs", str(outputs)]
    process = subprocess.Popen(command, env=environment(server, outputs), cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not server.history(RUN_ID) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert sync(server, outputs).returncode == 0
    assert steps_and_tokens(server.history(RUN_ID)) == expected(3000)
    assert (list(server.runs), server.exit_code(RUN_ID)) == ([RUN_ID], 0)


def test_an_unfinished_run_is_sent_as_far_as_it_is_and_the_rest_when_it_is_done(
    server: WandbServer, tmp_path: Path
) -> None:
    outputs = begin_run(tmp_path / "outputs", status="running")
    attempt(server, outputs, 0, 20, "0", mode="offline")  # killed
    assert "1 runs uploaded" in sync(server, outputs).stderr
    assert "0 runs uploaded; W&B had 1 whole" in sync(server, outputs).stderr
    assert server.exit_code(RUN_ID) == 75
    begin_run(tmp_path / "outputs")
    attempt(server, outputs, 10, 30, mode="offline")
    assert "1 runs uploaded" in sync(server, outputs).stderr
    assert (steps_and_tokens(server.history(RUN_ID)), server.exit_code(RUN_ID)) == (expected(30), 0)


def test_what_was_made_without_wandb_and_on_the_way_of_another_stage_stays_here(
    server: WandbServer, outputs: Path
) -> None:
    config = outputs / "pretrain/first-0123abcd/config.yaml"
    for logger in ({"mode": "disabled"}, None):
        config.write_text(yaml.safe_dump(CONFIG | {"logger": logger}), encoding="utf-8")
        assert "0 runs uploaded; W&B had 0 whole" in sync(server, outputs).stderr
    assert server.asked == []


def test_a_run_goes_on_without_its_helper_process_and_sync_sends_it(server: WandbServer, outputs: Path) -> None:
    command = [sys.executable, "-c", KILLED_HELPER, str(outputs), "300", "100", "SIGSTOP"]
    done = subprocess.run(
        command, env=environment(server, outputs), capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert json.loads(done.stdout)["finish"] < 60
    told = [line for line in done.stderr.splitlines() if "python -m llm.sync" in line]
    assert len(told) == 2, done.stderr  # where it writes, and that it does no more
    assert "Traceback" not in done.stderr
    said = sync(server, outputs)
    assert (said.returncode, steps_and_tokens(server.history(RUN_ID))) == (0, expected(300)), said.stderr


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda asked: 401 if asked == "Runs" else None, "W&B does not say what it has"),
        (lambda asked: 401 if asked.endswith("file_stream") else None, "could not be uploaded"),
    ],
    ids=["question", "records"],
)
def test_a_server_that_refuses_is_said_in_one_line_and_the_same_command_goes_on(
    fault: object, message: str, server: WandbServer, outputs: Path
) -> None:
    attempt(server, outputs, 0, 10, mode="offline")
    server.fault = fault  # type: ignore[assignment]
    said = sync(server, outputs)
    assert said.returncode == 74, said.stderr
    [line] = [line for line in said.stderr.splitlines() if line.startswith("error:")]
    assert message in line
    server.fault = lambda _: None
    assert sync(server, outputs).returncode == 0
    assert steps_and_tokens(server.history(RUN_ID)) == expected(10)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llm.sync", "--outputs", str(tmp_path / "nowhere")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (said.returncode, "is no folder. Give the one that the runs are in." in said.stderr) == (2, True)
