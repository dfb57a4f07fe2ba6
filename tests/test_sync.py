"""llm.sync: segments that W&B has not got, uploaded by the real client to a server on loopback, each once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.logger import read_segment, run_folders
from llm.sync import look
from tests.patience import PATIENCE
from tests.wandb_attempts import ROOT, RUN_ID, attempt, begin_run, environment, expected, steps_and_tokens, sync
from tests.wandb_server import WandbServer

# argv: outputs, records, after which of them wandb's helper process is killed. The records are in metrics.jsonl too.
KILLED_HELPER = """
import json, logging, os, signal, sys, time
from pathlib import Path
from llm.config import LoggerConfig, WandbMode
from llm.logger import open_logger
from llm.run import Run
outputs, last, killed_at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
folder = outputs / "pretrain" / "first-0123abcd"
logging.basicConfig(level=logging.INFO, format="%(message)s")
with open_logger(LoggerConfig(mode=WandbMode.offline), Run(folder, {"stage": "pretrain"}), outputs=outputs) as logger:
    with (folder / "metrics.jsonl").open("w") as file:
        for n in range(last):
            record = {"step": n, "tokens": 10 * n, "train/loss": 1 / (n + 1)}
            file.write(json.dumps(record) + "\\n")
            logger.log(record)
            if n == killed_at:
                time.sleep(2.5)  # what was logged so far is on the disk
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
    return begin_run(tmp_path / "outputs", is_done=True)


def waiting(outputs: Path) -> list[str]:
    return [segment.path.parent.name for segment in look(outputs).segments]


def test_segments_of_two_starts_are_uploaded_in_order_and_once(server: WandbServer, outputs: Path) -> None:
    attempt(server, outputs, 0, 40, "2.5", mode="offline")  # killed
    attempt(server, outputs, 25, 70, mode="offline")
    assert "2 segments wait; 0 were uploaded before" in sync(server, outputs, "--dry-run").stderr
    assert server.asked == []
    said = sync(server, outputs)
    assert (said.returncode, steps_and_tokens(server.history(RUN_ID))) == (0, expected(70)), said.stderr
    assert "2 segments uploaded" in said.stderr
    asked = len(server.asked)
    assert "0 segments uploaded; 2 were uploaded before" in sync(server, outputs).stderr
    assert len(server.asked) == asked


def test_a_torn_segment_is_uploaded_as_far_as_it_is_whole(server: WandbServer, outputs: Path) -> None:
    attempt(server, outputs, 0, 40, mode="offline")
    [folder] = run_folders(outputs)
    path = folder / f"run-{RUN_ID}.wandb"
    assert not read_segment(path).is_torn
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    torn_at = read_segment(path).whole_bytes + 5  # in the midst of a record
    path.write_bytes(content[:torn_at])
    left = read_segment(path)
    assert left.is_torn
    kept = len(left.steps)
    assert 0 < kept < 40
    attempt(server, outputs, 25, 50, mode="offline")  # what comes after a torn one is uploaded too
    said = sync(server, outputs)
    assert (said.returncode, steps_and_tokens(server.history(RUN_ID))) == (0, expected(50)), said.stderr
    assert (folder / f"{path.name}.torn").stat().st_size == torn_at


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGSTOP"])
def test_a_run_goes_on_without_its_helper_process_and_sync_sends_the_rest(
    signal_name: str, server: WandbServer, outputs: Path
) -> None:
    command = [sys.executable, "-c", KILLED_HELPER, str(outputs), "300", "100", signal_name]
    done = subprocess.run(
        command, env=environment(server, outputs), capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert json.loads(done.stdout)["finish"] < 60
    told = [line for line in done.stderr.splitlines() if "python -m llm.sync" in line]
    assert len(told) == 2, done.stderr  # where it writes, and that it does no more
    assert "Traceback" not in done.stderr
    said = sync(server, outputs)
    assert (said.returncode, steps_and_tokens(server.history(RUN_ID))) == (0, expected(300)), said.stderr
    assert server.summary(RUN_ID)["val/loss"] == 2.5


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda _: 401, "takes no login"),
        (lambda asked: 401 if asked == "UpsertBucket" else None, "could not be uploaded"),
        (lambda asked: 401 if asked.endswith("file_stream") else None, "could not be uploaded"),
    ],
    ids=["login", "run", "records"],
)
def test_a_server_that_refuses_is_said_in_one_line_and_nothing_is_marked(
    fault: object, message: str, server: WandbServer, outputs: Path
) -> None:
    attempt(server, outputs, 0, 10, mode="offline")
    server.fault = fault  # type: ignore[assignment]
    said = sync(server, outputs)
    assert said.returncode == 74
    [line] = [line for line in said.stderr.splitlines() if line.startswith("error:")]
    assert message in line
    assert len(waiting(outputs)) == 1
    server.fault = lambda _: None
    assert sync(server, outputs).returncode == 0
    assert steps_and_tokens(server.history(RUN_ID)) == expected(10)


def test_a_server_that_is_not_there_is_said_in_one_line(server: WandbServer, outputs: Path) -> None:
    attempt(server, outputs, 0, 10, mode="offline")
    gone = WandbServer()
    gone._http.server_close()
    said = sync(gone, outputs)
    assert said.returncode == 74
    assert [line for line in said.stderr.splitlines() if line.startswith("error:") and "takes no login" in line]
    assert len(waiting(outputs)) == 1


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llm.sync", "--outputs", str(tmp_path / "nowhere")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (said.returncode, "is no folder. Give the one that the runs are in." in said.stderr) == (2, True)
