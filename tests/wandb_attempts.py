"""Processes that log a small run to W&B's real client, against a server on loopback: what the tests of W&B share."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.patience import PATIENCE
from tests.wandb_server import WandbServer

ROOT = Path(__file__).parents[1]
RUN_ID = "pretrain-first-0123abcd"
CONFIG = {"stage": "pretrain", "model": {"name": "gpt2_tiny"}, "logger": {"mode": "auto"}}
RESULTS = {"val/bits_per_byte": 1.25}
FINISH_SECONDS = 4  # the limit of the tests; llm.logger's own is a minute

# argv: outputs, records that a checkpoint has, records at the end, how it ends, logger.mode, seconds to finish in.
# Prints the seconds of each phase.
ATTEMPT = """
import json, logging, os, signal, sys, time
from pathlib import Path
from llm.config.training import LoggerConfig, WandbMode
from llm.logger import live
from llm.run.metrics import MetricsLog
from llm.run.runs import Run
outputs, first, last, how, mode = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
run = Run(outputs / "pretrain" / "first-0123abcd", {"stage": "pretrain", "name": "first"})
records = [{"step": n, "tokens": 10 * n, "train/loss": 1 / (n + 1)} for n in range(last)]
live.FINISH_SECONDS = int(sys.argv[6])
logging.basicConfig(level=logging.INFO, format="%(message)s")
began = time.monotonic()
with live.open_logger(LoggerConfig(mode=WandbMode(mode), group="a sweep"), run, outputs=outputs) as logger:
    started = time.monotonic()
    kept = "".join(json.dumps(record) + "\\n" for record in records[:first])
    file = MetricsLog(run.path / "metrics.jsonl", size=len(kept))
    logger.follow()
    for record in records[first:]:
        file.append(record)
        time.sleep(0.01)
    logged = time.monotonic()
    if how != "end":
        time.sleep(float(how))
        os.kill(os.getpid(), signal.SIGKILL)
    logger.summarize({"val/bits_per_byte": 1.25})
ended = time.monotonic()
print(json.dumps({"start": started - began, "log": logged - started, "finish": ended - logged}))
"""


def begin_run(outputs: Path, *, status: str = "done") -> Path:
    """Make the folder of the run RUN_ID, as far as W&B is told of it; gives `outputs`."""
    folder = outputs / "pretrain" / "first-0123abcd"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    record = {"stage": "pretrain", "name": "first", "key": "0123abcd", "status": status, "results": RESULTS}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return outputs


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
        timeout=PATIENCE,
    )
    assert done.returncode == (0 if how == "end" else -9), done.stderr
    return json.loads(done.stdout or "{}"), done.stderr


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
