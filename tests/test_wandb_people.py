"""What people see of a run in W&B, and do to it there: sweep, artifacts, tables, alerts, stopping, a refusal midway."""

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
import yaml

from llm.config import LoggerConfig
from llm.errors import DivergedError
from llm.logger import open_logger, watching
from llm.logger.described import first, tag
from llm.run import Run
from llm.run.announcing import JOB_FOLDER, tell_job
from tests.patience import PATIENCE
from tests.wandb_server import WandbServer

RUN_ID = "finetune-first-0123abcd"
CONFIG = {"stage": "finetune", "data": {"path": None}, "optimizer": {"name": "adamw", "learning_rate": 0.01}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[WandbServer]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr(logging.getLogger("llm"), "propagate", True)
    caplog.set_level(logging.INFO, "llm")
    monkeypatch.setattr(watching.StopWatch.__init__, "__defaults__", (0.2,))
    wandb.teardown()
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        wandb.teardown()


def made(outputs: Path, stage: str, folder: str, file: str, **parents: Run) -> Run:
    """A run that has left one file."""
    path = outputs / stage / "first-0123abcd"
    (path / folder).mkdir(parents=True)
    (path / folder / file).write_text(f"{stage}: 가나다", encoding="utf-8")
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    folders = {name: str(run.path) for name, run in parents.items()}
    record = {"stage": stage, "name": "first", "key": "0123abcd", "status": "done", "folders": folders}
    (path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return Run(path, record)


def tuned(outputs: Path) -> Run:
    return made(outputs, "finetune", "adapter", "adapter.safetensors", base=made(outputs, "pretrain", "model", "a.bin"))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "llm"]


def test_a_job_of_a_sweep_has_its_group_its_tags_and_its_swept_keys_first(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "outputs" / "sweeps" / "rates-89abcdef" / "jobs" / "0000"
    job.mkdir(parents=True)
    tell_job(job, ["optimizer.learning_rate=0.01", "name=first"])
    monkeypatch.setenv(JOB_FOLDER, str(job))
    with open_logger(LoggerConfig(tags=["mine"]), tuned(tmp_path / "outputs"), outputs=tmp_path / "outputs"):
        pass
    there = server.runs[RUN_ID]
    assert (there["groupName"], there["jobType"]) == ("rates-89abcdef", "finetune")
    assert there["tags"] == ["mine", "optimizer.learning_rate=0.01"]
    assert list(first(CONFIG, ["optimizer.learning_rate"])) == ["optimizer", "stage", "data"]
    assert list(first(CONFIG, ["optimizer.learning_rate"])["optimizer"]) == ["learning_rate", "name"]


def test_a_tag_keeps_to_the_64_characters_that_wandb_takes() -> None:
    assert tag("optimizer.learning_rate", "0.01") == "optimizer.learning_rate=0.01"
    assert tag("a." * 40 + "rate", "0.01") == "rate=0.01"
    assert (tag("a", "가" * 70), len(tag("a", "가" * 70))) == ("a=" + "가" * 61 + "…", 64)


def test_runs_are_linked_by_artifacts_of_which_nothing_is_uploaded(server: WandbServer, tmp_path: Path) -> None:
    with open_logger(LoggerConfig(), tuned(tmp_path), outputs=tmp_path):
        pass
    linked = {each["artifactCollectionName"]: each for each in server.artifacts.values()}
    assert linked["pretrain-first-0123abcd"]["used_by"] == [RUN_ID]
    assert linked[RUN_ID]["used_by"] == []
    assert {each["state"] for each in linked.values()} == {"COMMITTED"}
    manifests = [json.loads(body) for path, body in server.uploaded.items() if path.startswith("/manifest/")]
    references = {entry["ref"] for manifest in manifests for entry in manifest["contents"].values()}
    assert references == {
        path.as_uri() for path in (*tmp_path.glob("pretrain/*/model/*"), *tmp_path.glob("*/*/adapter/*"))
    }
    assert not [path for path in server.uploaded if path.startswith("/artifact/")]


def test_a_table_of_samples_uploads_each_sample_once_and_all_of_them_at_the_end(
    server: WandbServer, tmp_path: Path
) -> None:
    samples = [{"step": step, "prompt": "대한", "text": f"민국 {step}"} for step in range(12)]
    with open_logger(LoggerConfig(), tuned(tmp_path), outputs=tmp_path) as logger:
        for step in range(12):
            logger.log_samples(samples[: step + 1])
            logger.log({"step": step, "tokens": step})
        logger.summarize({"val/loss": 1.0})
    tables = [json.loads(body)["data"] for path, body in server.uploaded.items() if "/media/table/samples_" in path]
    rows = [[each["step"], each["prompt"], each["text"]] for each in samples]
    assert sorted(tables, key=len)[-1] == rows
    assert sorted(row for table in sorted(tables, key=len)[:-1] for row in table) == rows
    assert [row["_step"] for row in server.history(RUN_ID)] == list(range(12))


def test_a_run_that_diverges_is_told_of_once(server: WandbServer, tmp_path: Path) -> None:
    with pytest.raises(DivergedError), open_logger(LoggerConfig(), tuned(tmp_path), outputs=tmp_path):
        raise DivergedError("val/loss is nan at step 3.")
    [alert] = server.alerts
    assert (alert["title"], alert["text"]) == ("The run diverged", "val/loss is nan at step 3.")
    assert server.exit_code(RUN_ID) == 70


def test_a_run_is_stopped_by_a_tag_which_is_taken_off(
    server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped: list[str] = []
    with open_logger(LoggerConfig(), tuned(tmp_path), outputs=tmp_path) as logger:
        logger.on_stop(stopped.append)
        wait_for(lambda: server.asked.count("Run") > 1)
        server.runs[RUN_ID]["tags"] = ["mine", "stop"]
        wait_for(lambda: bool(stopped))
    assert stopped == ["the tag stop in W&B"]
    assert server.runs[RUN_ID]["tags"] == ["mine"]
    assert said(caplog)[-1] == "the tag stop in W&B asks the run to stop: it saves, and ends"


def test_a_server_that_refuses_midway_is_told_of_once_and_nothing_is_marked(
    server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_logger(LoggerConfig(), tuned(tmp_path), outputs=tmp_path) as logger:
        logger.log({"step": 0, "tokens": 0})
        server.fault = lambda asked: 401 if asked.endswith("file_stream") else None
        logger.log({"step": 1, "tokens": 1})
    told = [line for line in said(caplog) if "the server takes nothing any more" in line]
    assert told == [
        "wandb: the server takes nothing any more (401 Unauthorized); the run goes on. Upload what it lacks later: "
        "python -m llm.sync"
    ]
    assert not [*(tmp_path / "wandb").glob("*/*.synced")]


def wait_for(condition, seconds: float = PATIENCE) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
