"""The logger: W&B as a view of metrics.jsonl, which nothing that W&B does can stop."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from llm.config.training import LoggerConfig, WandbMode
from llm.logger import live
from llm.logger.live import RunLogger, open_logger
from llm.logger.view import View
from llm.run.runs import Run
from tests.patience import PATIENCE
from tests.wandb_attempts import said, write_lines

CONFIG = {"stage": "pretrain", "model": {"name": "gpt2_tiny", "num_layers": 3}, "data": {"path": None}}
OFFLINE = LoggerConfig(mode=WandbMode.offline, project="blog", tags=["first", "korean"])
RECORD = {"step": 1, "tokens": 5, "train/loss": 2.0}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No login of whoever runs the tests, no network, and no service that outlives a test."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_RUN_GROUP", "WANDB_NAME", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "3")
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "llm")
    wandb.teardown()
    yield
    wandb.teardown()


def run_of(outputs: Path, name: str = "first-0123abcd", stage: str = "pretrain") -> Run:
    folder = outputs / stage / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    write_lines(folder / "metrics.jsonl", [RECORD])
    return Run(folder, {"stage": stage, "name": name.split("-")[0]})


def log_run(config: LoggerConfig, run: Run, outputs: Path) -> None:
    with open_logger(config, run, outputs=outputs) as logger:
        logger.follow()


def wandb_folders(outputs: Path) -> list[Path]:
    return sorted(path for path in (outputs / "wandb").glob("*run-*") if not path.is_symlink())


def test_without_a_login_wandb_is_offline_and_one_line_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    log_run(LoggerConfig(), run_of(tmp_path), tmp_path)
    (folder,) = wandb_folders(tmp_path)
    assert said(caplog) == [
        f"wandb is offline, for no login was found (wandb login changes that): {folder}. Upload: python -m llm.sync"
    ]
    printed = capfd.readouterr()
    ours = [line for line in printed.err.splitlines() if " wandb is " in line]  # where an earlier test began to log
    assert (printed.out, printed.err.splitlines()) == ("", ours)  # and wandb says nothing by itself
    assert {path.name for path in tmp_path.iterdir()} <= {"wandb", "pretrain", "wandb-config"}


@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        ("offline", "wandb is offline, as wandb's own settings say: /"),
        ("disabled", "wandb is disabled, as wandb's own"),
    ],
)
def test_auto_does_as_wandb_mode_says(
    chosen: str, line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", chosen)
    log_run(LoggerConfig(), run_of(tmp_path), tmp_path)
    assert said(caplog)[0].startswith(line)
    assert len(wandb_folders(tmp_path)) == (chosen == "offline")


@pytest.mark.parametrize("mode", [WandbMode.online, WandbMode.offline])
def test_a_wandb_that_cannot_start_does_not_stop_a_run(
    mode: WandbMode, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("no space\nand many more lines")

    monkeypatch.setattr(wandb, "init", fail)
    log_run(LoggerConfig(mode=mode), run_of(tmp_path), tmp_path)
    assert said(caplog) == ["wandb could not start (no space); the run goes on without it"]


DISABLED = """
import sys
from pathlib import Path
from llm.config.training import LoggerConfig, WandbMode
from llm.logger.live import open_logger
from llm.run.runs import Run
with open_logger(LoggerConfig(mode=WandbMode.disabled), Run(Path("x"), {}), outputs=Path("outputs")) as logger:
    logger.follow()
    logger.summarize({"a": 1})
print("wandb" in sys.modules, Path("outputs").exists())
"""


def test_disabled_imports_no_wandb_and_writes_nothing(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n{DISABLED}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


class Broken:
    """A W&B run that fails at whatever it is asked for."""

    offline, step = True, 0

    def log(self, *_: Any, **__: Any) -> Any:
        raise ConnectionError("the server is gone")

    finish = property(lambda self: self.log())
    summary = property(lambda self: self.log())


def test_runs_of_one_process_are_wandb_runs_of_their_own_though_one_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, "log", Broken().log)
        log_run(OFFLINE, run_of(tmp_path, "broken-01234567"), tmp_path)
    log_run(OFFLINE, run_of(tmp_path, "first-01234567"), tmp_path)
    log_run(OFFLINE, run_of(tmp_path, "second-89abcdef", "finetune"), tmp_path)
    described = []
    for folder in wandb_folders(tmp_path):
        records = inspected(folder)
        if "broken" in folder.name:  # its helper process was ended before it wrote anything
            assert "history" not in records
            continue
        (run,) = records["run"]
        names = ("project", "run_id", "display_name", "run_group", "job_type", "tags")
        history = [without_internal(record["item"]) for record in records["history"]]
        described.append([*(run[name] for name in names), history])
        assert without_internal(run["config"]["update"]) == CONFIG
        axes = [metric.get("step_metric") for metric in records["metric"] if metric.get("glob_name") == "*"]
        assert axes == ["tokens"]
    tags = ["first", "korean"]
    assert sorted(described) == [
        ["blog", "finetune-second-89abcdef", "second-89abcdef", "finetune", "finetune", tags, [RECORD]],
        ["blog", "pretrain-first-01234567", "first-01234567", "pretrain", "pretrain", tags, [RECORD]],
    ]


def inspected(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of a W&B run's file, by type, as wandb's own reader shows them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records: dict[str, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record.get(record["type"]) or {})
    return records


def without_internal(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if not name.startswith("_")}


def test_what_wandb_raises_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FOLLOW_SECONDS", 0.01)
    given_up = threading.Event()
    monkeypatch.setattr(live, "kill_service", given_up.set)
    logger = RunLogger(View(Broken(), run_of(tmp_path)))
    logger.follow()
    assert given_up.wait(PATIENCE)
    logger.summarize({"val/loss": 1.0})
    logger.finish(exit_code=0)
    assert said(caplog) == [
        "wandb is left out from here on (the server is gone); metrics.jsonl has it all. Upload the rest: "
        "python -m llm.sync"
    ]


def test_what_wandb_has_from_an_earlier_start_is_not_sent_again_nor_its_samples(tmp_path: Path) -> None:
    sent: list[tuple[dict[str, Any], int]] = []
    members = {"offline": False, "step": 2, "log": lambda self, record, *, step, commit: sent.append((record, step))}
    run = run_of(tmp_path)
    view = View(type("Run", (), members)(), run)
    write_lines(run.path / "samples.jsonl", [{"step": 1, "prompt": "가", "text": "나"}])
    write_lines(run.path / "metrics.jsonl", records := [{"step": n, "tokens": n, "val/loss": 1.0} for n in range(4)])
    view.catch_up()
    view.catch_up()
    assert sent == [(records[2], 2), (records[3], 3)]
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tokens": 4}\n{"step": 5,')  # the last is still being written
    view.catch_up()
    assert sent[2:] == [({"step": 4, "tokens": 4}, 4)]
