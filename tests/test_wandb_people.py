"""What people see of a run in W&B, and do to it there: sweep, artifacts, tables, alerts, stopping, a refusal midway."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
import yaml

from llm.config.training import LoggerConfig, WandbMode
from llm.environment import JOB_FOLDER
from llm.errors import DivergedError
from llm.logger.live import open_logger
from llm.logger.view import tag
from llm.run.announcing import JOB
from llm.run.runs import Run, load
from llm.sync import find, upload
from tests.wandb_server import WandbServer

RUN_ID = "finetune-first-0123abcd"
CONFIG = {
    "stage": "finetune",
    "logger": {"mode": "auto"},
    "data": {"path": None},
    "optimizer": {"name": "adamw", "learning_rate": 0.01},
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[WandbServer]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    caplog.set_level(logging.INFO, "llm")
    wandb.teardown()
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        wandb.teardown()


def made(outputs: Path, stage: str, folder: str, file: str, **parents: Run) -> Run:
    """A run that has left one file."""
    path = outputs / stage / "first-0123abcd"
    (path / folder).mkdir(parents=True, exist_ok=True)
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


def test_a_job_of_a_sweep_has_its_group_and_its_tags_after_a_sync_too(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "outputs" / "sweeps" / "rates-89abcdef" / "jobs" / "0000"
    job.mkdir(parents=True)
    (job / JOB).write_text(json.dumps({"varying": ["optimizer.learning_rate=0.01", "name=first"]}))
    monkeypatch.setenv(JOB_FOLDER, str(job))
    outputs = tmp_path / "outputs"
    for mode in ("auto", "offline"):
        server.runs.clear()
        tuned(outputs)
        run = load(outputs / "finetune/first-0123abcd")
        with open_logger(LoggerConfig(mode=WandbMode[mode], tags=["mine"]), run, outputs=outputs):
            pass
        if mode == "offline":
            monkeypatch.delenv(JOB_FOLDER)
            [shown] = [each for each in find(outputs)[0] if each.run.stage == "finetune"]
            upload(shown, outputs)
        there = server.runs[RUN_ID]
        assert (there["groupName"], there["jobType"]) == ("rates-89abcdef", "finetune")
        assert there["tags"] == ["mine", "optimizer.learning_rate=0.01"]


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
    run = tuned(tmp_path)
    (run.path / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples), encoding="utf-8")
    records = [{"step": step, "tokens": step, "val/loss": 1.0} for step in range(12)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    with open_logger(LoggerConfig(), run, outputs=tmp_path) as logger:
        logger.follow()
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


def test_a_server_that_refuses_midway_is_told_of_once(
    server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tuned(tmp_path)
    with open_logger(LoggerConfig(), run, outputs=tmp_path) as logger:
        server.fault = lambda asked: 401 if asked.endswith("file_stream") else None
        (run.path / "metrics.jsonl").write_text('{"step": 1, "tokens": 1}\n', encoding="utf-8")
        logger.follow()
    told = [line for line in said(caplog) if "python -m llm.sync" in line]
    assert told == [
        "wandb did not get everything (the server refused records); metrics.jsonl has it all. Upload the rest: "
        "python -m llm.sync"
    ]
