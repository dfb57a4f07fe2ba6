"""The logger: W&B as a view of metrics.jsonl, which nothing that W&B does can stop."""

import json
import logging
import subprocess
import sys
import time
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

CONFIG = {"stage": "pretrain", "model": {"name": "gpt2_tiny", "num_layers": 3}, "data": {"path": None}}
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No login of whoever runs the tests, no network, and no service that outlives a test."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_RUN_GROUP", "WANDB_NAME", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
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
    write(folder, "metrics", [{"step": 1, "tokens": 5, "train/loss": 2.0}])
    return Run(folder, {"stage": stage, "name": name.split("-")[0]})


def write(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def inspected(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of a W&B run's file, by type, as wandb's own reader shows them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    records: dict[str, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record.get(record["type"]) or {})
    return records


def wandb_folders(outputs: Path) -> list[Path]:
    return sorted(path for path in (outputs / "wandb").glob("*run-*") if not path.is_symlink())


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "llm"]


# Modes


def test_without_a_login_wandb_is_offline_and_one_line_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_logger(LoggerConfig(), run_of(tmp_path), outputs=tmp_path) as logger:
        logger.follow()
    (folder,) = wandb_folders(tmp_path)
    assert said(caplog) == [
        f"wandb is offline, for no login was found (wandb login changes that): {folder}. Upload: python -m llm.sync"
    ]
    assert list(folder.glob("*.wandb"))  # what wandb sync is given is there
    printed = capfd.readouterr()
    ours = [line for line in printed.err.splitlines() if " wandb is " in line]  # where an earlier test began to log
    assert (printed.out, printed.err.splitlines()) == ("", ours)  # and wandb says nothing by itself
    assert {path.name for path in tmp_path.iterdir()} <= {"wandb", "pretrain", "wandb-config"}


def test_online_without_a_server_falls_back_to_offline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_before = wandb.init

    def refuse_online(**settings: Any) -> Any:
        if settings["mode"] == "online":
            raise wandb.errors.CommError("no server\nand many more lines")
        return as_before(**settings)

    monkeypatch.setattr(wandb, "init", refuse_online)
    with open_logger(LoggerConfig(mode=WandbMode.online), run_of(tmp_path), outputs=tmp_path) as logger:
        logger.follow()
    (line,) = said(caplog)
    assert line.startswith("wandb is offline, for it could not start online (no server): /")
    assert inspected(wandb_folders(tmp_path)[0])["history"]


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
    with open_logger(LoggerConfig(), run_of(tmp_path), outputs=tmp_path) as logger:
        logger.follow()
    assert said(caplog)[0].startswith(line)
    assert len(wandb_folders(tmp_path)) == (chosen == "offline")


def test_a_wandb_that_cannot_start_does_not_stop_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("no space")

    monkeypatch.setattr(wandb, "init", fail)
    with open_logger(LoggerConfig(mode=WandbMode.offline), run_of(tmp_path), outputs=tmp_path) as logger:
        logger.follow()
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
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{DISABLED}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False False\n"


# What is logged


OFFLINE = LoggerConfig(mode=WandbMode.offline, project="blog", tags=["first", "korean"])


def test_a_wandb_run_holds_the_records_the_samples_and_the_results(tmp_path: Path) -> None:
    metrics = [{"step": s, "tokens": 10 * s, "seconds": 0.5, "train/loss": 3.0 / s} for s in (1, 2, 3)]
    metrics += [{"step": 3, "tokens": 30, "seconds": 0.6, "val/loss": 2.0}]
    run = run_of(tmp_path)
    write(run.path, "metrics", metrics)
    write(run.path, "samples", [{"step": 3, "prompt": "대한민국은", "text": " 민주공화국이다"}])
    with open_logger(OFFLINE, run, outputs=tmp_path) as logger:
        logger.follow()
        logger.summarize({"val/bits_per_byte": 1.5})
    records = inspected(wandb_folders(tmp_path)[0])
    logged = [without_internal(record["item"]) for record in records["history"]]
    samples = {name for name in logged[3] if name.split(".")[0] == "samples"}
    assert samples  # with the record of their validation
    assert [{name: value for name, value in line.items() if name not in samples} for line in logged] == metrics
    tables = [*wandb_folders(tmp_path)[0].glob("files/media/table/*.json")]
    for table in tables:
        assert json.loads(table.read_text(encoding="utf-8")) == {
            "columns": ["step", "prompt", "text"],
            "data": [[3, "대한민국은", " 민주공화국이다"]],
        }
    assert len(tables) == 2  # that of the validation, and the one over time
    assert 1.5 in [record.get("update", {}).get("val/bits_per_byte") for record in records["summary"]]
    assert records["exit"][0].get("exit_code", 0) == 0
    axes = [metric.get("step_metric") for metric in records["metric"] if metric.get("glob_name") == "*"]
    assert axes == ["tokens"]


def without_internal(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if not name.startswith("_")}


def test_two_runs_of_one_process_are_two_wandb_runs_with_their_config(tmp_path: Path) -> None:
    for stage, name in (("pretrain", "first-01234567"), ("finetune", "second-89abcdef")):
        with open_logger(OFFLINE, run_of(tmp_path, name, stage), outputs=tmp_path) as logger:
            logger.follow()
    described = []
    for folder in wandb_folders(tmp_path):
        records = inspected(folder)
        (run,) = records["run"]
        names = ("project", "run_id", "display_name", "run_group", "job_type", "tags")
        described.append([run[name] for name in names])
        assert without_internal(run["config"]["update"]) == CONFIG
        assert len(records["history"]) == 1
    assert sorted(described) == [
        ["blog", "finetune-second-89abcdef", "second-89abcdef", "finetune", "finetune", ["first", "korean"]],
        ["blog", "pretrain-first-01234567", "first-01234567", "pretrain", "pretrain", ["first", "korean"]],
    ]


# What cannot stop a run


class Broken:
    """A W&B run that fails at whatever it is asked for."""

    offline, step = True, 0

    def log(self, *_: Any, **__: Any) -> Any:
        raise ConnectionError("the server is gone")

    finish = property(lambda self: self.log())
    summary = property(lambda self: self.log())


def test_what_wandb_raises_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FOLLOW_SECONDS", 0.01)
    logger = RunLogger(View(Broken(), run_of(tmp_path)))
    logger.follow()
    deadline = time.monotonic() + PATIENCE
    while not said(caplog) and time.monotonic() < deadline:
        time.sleep(0.01)
    logger.summarize({"val/loss": 1.0})
    logger.finish(exit_code=0)
    assert said(caplog) == [
        "wandb is left out from here on (the server is gone); metrics.jsonl has it all. Upload the rest: "
        "python -m llm.sync"
    ]


def test_a_wandb_run_that_broke_does_not_take_the_records_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, "log", Broken().log)
        with open_logger(OFFLINE, run_of(tmp_path, "first-01234567"), outputs=tmp_path) as logger:
            logger.follow()
    with open_logger(OFFLINE, run_of(tmp_path, "second-01234567"), outputs=tmp_path) as logger:
        logger.follow()
    found = {
        folder.name.partition("-pretrain-")[2]: [
            without_internal(r["item"]) for r in inspected(folder).get("history", [])
        ]
        for folder in wandb_folders(tmp_path)
    }
    assert found == {"first-01234567": [], "second-01234567": [{"step": 1, "tokens": 5, "train/loss": 2.0}]}


# Going on after a stop


def test_what_wandb_has_from_an_earlier_start_is_not_sent_again_nor_its_samples(tmp_path: Path) -> None:
    sent: list[tuple[dict[str, Any], int]] = []
    members = {"offline": False, "step": 2, "log": lambda self, record, *, step, commit: sent.append((record, step))}
    run = run_of(tmp_path)
    view = View(type("Run", (), members)(), run)
    write(run.path, "samples", [{"step": 1, "prompt": "가", "text": "나"}])
    write(run.path, "metrics", records := [{"step": step, "tokens": step, "val/loss": 1.0} for step in range(4)])
    view.catch_up()
    view.catch_up()
    assert sent == [(records[2], 2), (records[3], 3)]
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tokens": 4}\n{"step": 5,')  # the last is still being written
    view.catch_up()
    assert sent[2:] == [({"step": 4, "tokens": 4}, 4)]
