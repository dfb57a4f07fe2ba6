"""Runs: what is found again, reused, resumed or refused, and files that are whole or absent."""

import errno
import json
import logging
import os
import socket
import subprocess
import sys
import time
import unicodedata
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from llm.config.data import DataConfig, DataKind
from llm.config.stages import Reuse, TokenizerStage
from llm.config.tokenizer import TokenizerConfig
from llm.config.training import LoggerConfig
from llm.environment import launch_id, process_rank
from llm.errors import (
    ConfigError,
    DamagedError,
    DataError,
    DivergedError,
    LaunchError,
    MachineError,
    StoppedError,
    one_line_errors,
)
from llm.run import owner
from llm.run.console import log
from llm.run.files import digest_of, whole_folder, write_json, write_text
from llm.run.making import Outcome, Plan
from llm.run.making import make as make_planned
from llm.run.owner import owned
from llm.run.record import MetricsLog, history, read_metrics, write_record
from llm.run.runs import candidates, find_run, load
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
OUTCOME = Outcome(results={"loss": 0.5}, digest="d" * 64, objective=0.5)


def plan(outputs, *, name=None, reuse=Reuse.auto, parents=None, format_version=1, data=None, **tokenizer):
    config = TokenizerStage(
        stage="tokenizer",
        name=name,
        outputs=str(outputs),
        reuse=reuse,
        tokenizer=TokenizerConfig(**{"name": "bpe", "model": "BPE"} | tokenizer),
        data=DataConfig(**{"name": "law", "kind": DataKind.text, "path": "law.txt"} | (data or {})),
    )
    made_of = parents or {}
    return Plan(config=config, default_name="bpe-law", format_version=format_version, parents=made_of, work=never)


def make(plan, work, **how):
    return make_planned(replace(plan, work=work), **how)


def succeed(run):
    return OUTCOME


def never(run):
    raise AssertionError("this run was to be reused")


def failing(error):
    def work(run):
        (run.path / "half.txt").write_text("half")
        raise error

    return work


@pytest.fixture(autouse=True)
def _same_commit(monkeypatch):
    for module in ("record", "making"):
        monkeypatch.setattr(f"llm.run.{module}.commit", lambda: "aaaa")


@pytest.fixture
def lines():
    """The log lines of the test."""
    found = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: found.append(record.getMessage())
    log.addHandler(handler)
    yield found
    log.removeHandler(handler)


# A run's folder


def test_a_run_is_kept_under_its_name_and_key_with_all_that_made_it(tmp_path):
    run = make(plan(tmp_path, parents={"data": "abc"}), succeed)
    assert run.path == tmp_path / "tokenizer" / "bpe-law-b185a427"  # a key that changes has every run made anew
    assert load(run.path) == run
    assert run.record["files"]["config.yaml"]["bytes"] == (run.path / "config.yaml").stat().st_size
    assert (run.state, run.results, run.digest, run.objective) == ("done", {"loss": 0.5}, "d" * 64, 0.5)
    assert run.record["identity"]["parents"] == {"data": "abc"}
    assert (run.record["host"], run.record["pid"]) == (socket.gethostname(), os.getpid())
    assert yaml.safe_load((run.path / "config.yaml").read_text())["tokenizer"]["name"] == "bpe"
    assert {path.name for path in run.path.iterdir()} - {".lock"} == {"run.json", "config.yaml", "log.txt"}


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        ({"name": "mine", "outputs": Path("elsewhere"), "reuse": Reuse.never, "data": {"batch_size": 8}}, False),
        ({"vocab_size": 9000}, True),
        ({"parents": {"data": "x"}}, True),
        ({"format_version": 2}, True),
    ],
    ids=str,
)
def test_the_key_is_of_what_changes_a_run_and_not_of_how_or_where_it_is_made(change, is_another):
    assert (plan(**{"outputs": Path("outputs")} | change).key != plan(Path("outputs")).key) is is_another


def test_a_parent_outside_of_the_outputs_folder_is_kept_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parent = make(plan(Path("others")), succeed)
    child = make(replace(plan(Path("outputs"), vocab_size=9000), folders={"base": str(parent.path)}), succeed)
    assert child.record["folders"] == {"base": str(tmp_path / parent.path)}
    monkeypatch.chdir("/")
    assert load(tmp_path / child.path).parent("base").record == parent.record


def test_a_run_whose_key_another_config_has_by_chance_is_refused_and_never_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("llm.run.record.digest_of", lambda value: "0" * 8 + digest_of(value)[8:])
    run = make(plan(tmp_path, vocab_size=5000), succeed)
    with pytest.raises(ConfigError, match=r"bpe-law-00000000 is of another config that has the same key by chance"):
        make(plan(tmp_path, vocab_size=6000), never)
    other = make(plan(tmp_path, name="mine", vocab_size=6000), succeed)
    assert make(plan(tmp_path, vocab_size=5000), never) == run != other


# Reuse


def test_a_finished_run_serves_whatever_its_name_and_a_line_says_so_and_whether_its_metrics_are_damaged(
    tmp_path, lines
):
    def work(run):
        (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n', encoding="utf-8")
        return OUTCOME

    run = make(plan(tmp_path, name="mine"), work)
    lines.clear()
    assert make(plan(tmp_path), never) == make(plan(tmp_path, reuse=Reuse.require), never) == run
    assert lines == [f"reused {run.path} (made {run.record['ended_at']})"] * 2
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"step', encoding="utf-8")
    lines.clear()
    assert make(plan(tmp_path), never) == run
    assert lines[1].startswith(f"{run.path / 'metrics.jsonl'}:2: the rest is cut off, of 24 bytes. Make the tokenizer")


@pytest.mark.parametrize(
    ("logger", "hint"),
    [
        (LoggerConfig(), ". reuse=never runs again"),
        (None, ""),  # on the way of another stage, whose reuse=never would not make it again
    ],
    ids=["typed", "on the way"],
)
def test_reuse_names_another_commit_and_the_settings_that_are_not_applied(logger, hint, tmp_path, lines, monkeypatch):
    run = make(plan(tmp_path), succeed)
    monkeypatch.setattr("llm.run.making.commit", lambda: "bbbb")
    lines.clear()
    again = plan(tmp_path, data={"batch_size": 8})
    make(replace(again, config=replace(again.config, logger=logger)), never)
    assert lines == [
        f"reused {run.path} (made {run.record['ended_at']} by commit aaaa, this is bbbb)",
        f"  data.batch_size=8 is not applied (it was 32); it changes no content{hint}",
    ]


def content(folder):
    """Every file of a run but its lock, with its bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (".lock", ".owner.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def finished_before(outputs):
    """A finished run with files and a folder, and its content."""
    run = make(plan(outputs), succeed)
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "old.txt").write_text("old")
    (run.path / "model.txt").write_text("old")
    return run, content(run.path)


@pytest.mark.parametrize("error", [RuntimeError("broken"), StoppedError("by SIGINT")], ids=repr)
def test_reuse_never_gives_back_what_it_was_to_replace_unless_it_came_to_a_checkpoint(error, tmp_path, lines):
    def come_to_a_checkpoint(run):
        assert ".earlier" in {path.name for path in run.path.iterdir()}
        (run.path / "checkpoints" / "step-00000001").mkdir(parents=True)
        raise error

    (outside := tmp_path / "outside").mkdir()
    run, before = finished_before(tmp_path)
    (run.path / "link").symlink_to(outside)
    with pytest.raises(type(error)):
        make(plan(tmp_path, reuse=Reuse.never), failing(error))
    assert content(run.path) == before
    assert lines[-1] == f"what was to take the place of {run.path} came to nothing; it is again as it was"
    assert make(plan(tmp_path), never) == run
    with pytest.raises(type(error)):
        make(plan(tmp_path, reuse=Reuse.never), come_to_a_checkpoint)
    assert load(run.path).record["status"] != "done" and "model.txt" not in content(run.path)
    assert outside.is_dir()
    make(plan(tmp_path), lambda run: OUTCOME if (run.path / "checkpoints" / "step-00000001").exists() else never(run))
    assert ".earlier" not in {path.name for path in run.path.iterdir()}


STARTS = {  # who starts a command again -> what its first start and a later one know of that
    "slurm": ({"SLURM_JOB_ID": "7"}, (requeued := {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})),
    "slurm, whose first start never came to the run": (requeued, requeued),
    "ranks": ({"TORCHELASTIC_RUN_ID": "a"}, {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "1"}),
    "sweep": ({"TTUKTTAK_COMMAND": "s/0 then"}, {"TTUKTTAK_COMMAND": "s/0 then"}),
}


@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
def test_reuse_never_acts_once_however_often_its_command_is_started(starts, tmp_path, monkeypatch):
    first, later = starts
    run, _ = finished_before(tmp_path)
    again = plan(tmp_path, reuse=Reuse.never)
    for variables, work in ((first, failing(StoppedError("by SIGTERM"))), (later, failing(StoppedError("once more")))):
        with monkeypatch.context() as patch, pytest.raises(StoppedError):
            for name, value in variables.items():
                patch.setenv(name, value)
            make(again, work)
        assert (run.path / "half.txt").exists() and not (run.path / "model.txt").exists()
    with monkeypatch.context() as patch:
        for name, value in later.items():
            patch.setenv(name, value)
        made = make(again, lambda run: OUTCOME if (run.path / "half.txt").exists() else never(run))
        assert make(again, never) == made  # the last look of a process that was started again
    assert "model.txt" not in content(run.path) and not (run.path / ".earlier").exists()
    seen = []
    make(again, lambda run: seen.append((run.path / "half.txt").exists()) or OUTCOME)  # typed again
    assert seen == [False]


class Killed(BaseException):
    pass


def killed_at(number, patch):
    """Have the process end before the so-many-th change that is made to what lies in a run's folder."""
    left = [number]

    def ending(call):
        def counted(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return call(*args, **kwargs)

        return counted

    for place, name in ((Path, "rename"), (Path, "unlink"), (owner, "remove")):
        patch.setattr(place, name, ending(getattr(place, name)))


def test_a_kill_at_any_moment_of_setting_aside_or_giving_back_loses_nothing(tmp_path, monkeypatch):
    run, before = finished_before(tmp_path)
    ended, number = False, 0
    while not ended:
        with monkeypatch.context() as patch:
            killed_at(number, patch)
            try:
                owner.set_aside(run.path)
                ended = True
            except Killed:
                number += 1
        (run.path / "checkpoints").mkdir(exist_ok=True)  # what a new one had begun
        if ended:
            write_record(run.path, run.record | {"status": "running"})
            (run.path / "checkpoints" / "new.txt").write_text("new")
        for moment in range(12):
            with monkeypatch.context() as patch:
                killed_at(moment, patch)
                with suppress(Killed):
                    owner.keep_new_or_earlier(run.path)
        owner.keep_new_or_earlier(run.path)
        assert content(run.path) == before, number
    assert number == 1 + len(before)  # a look for what an earlier one left, and a rename each


def test_reuse_require_refuses_to_make_and_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"reuse=require, but there is no finished run .*Set reuse=auto to make it"):
        make(plan(tmp_path, reuse=Reuse.require), never)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("broken\nin two lines"), "RuntimeError: broken"),
        (DivergedError("the loss is nan"), "DivergedError: the loss is nan"),
        (OSError("no http://me:a-word@host"), "OSError: no http://me:***@host"),
        (StoppedError("stopped by SIGTERM"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_ends_the_work_is_recorded_and_the_same_command_goes_on(error, said, tmp_path, lines):
    with pytest.raises(type(error)):
        make(plan(tmp_path), failing(error))
    [run] = candidates(tmp_path)
    if said is None:
        assert (run.state, run.record["stopped"]) == ("unfinished", "stopped by SIGTERM")
    else:
        assert (run.state, run.record["error"]) == ("failed", said)
    log_text = (run.path / "log.txt").read_text()
    assert ("Traceback" in log_text) == isinstance(error, RuntimeError | OSError)
    assert not [path for path in run.path.iterdir() if b"a-word" in path.read_bytes()]
    lines.clear()
    again = make(plan(tmp_path), succeed)
    assert lines[0] == f"tokenizer goes on in {run.path}"
    assert (again.state, again.path) == ("done", run.path) and not {"error", "stopped"} & again.record.keys()
    assert again.record["first_started_at"] == run.record["first_started_at"]
    assert (run.path / "half.txt").read_text() == "half"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "mine", "parents": {"data": "b" * 64, "chat_template": "c"}}, "its data, its chat template"),
        ({"name": "mine", "vocab_size": 7000}, "tokenizer.vocab_size=7000 (was 8192), its data"),
        ({"parents": {"data": "b" * 64}}, None),  # nobody named it: other data has other runs, of course
    ],
)
def test_a_new_run_says_how_it_differs_from_the_nearest_of_its_name(given, said, tmp_path, lines):
    make(plan(tmp_path, name=given.get("name"), parents={"data": "a" * 64}), succeed)
    make(plan(tmp_path, name="other", **{key: value for key, value in given.items() if key != "name"}), succeed)
    lines.clear()
    make(plan(tmp_path, **given), succeed)
    expected = [f"  a new run, for it differs from the nearest of that name in {said}"] if said else []
    assert [line for line in lines if "a new run" in line] == expected


def test_the_log_and_the_warnings_of_libraries_are_kept_with_the_run(tmp_path):
    def work(run):
        log.info("한 줄")
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("a library warns", UserWarning, stacklevel=1)
        return OUTCOME

    text = (make(plan(tmp_path), work).path / "log.txt").read_text(encoding="utf-8")
    assert "INFO 한 줄\n" in text
    assert "UserWarning: a library warns" in text


# Two processes

SCRIPT = """
import os, sys, time
from pathlib import Path
from tests.test_run import OUTCOME, make, plan
outputs, mode = Path(sys.argv[1]), sys.argv[2]

def work(run):
    rank = os.environ.get("RANK", "0")
    (outputs / f"working-{os.getpid()}-{rank}").touch()
    print("working", flush=True)
    if mode == "fail" and rank == "0":
        raise RuntimeError("no luck")
    while mode == "hold" and not (outputs / "release").exists():
        time.sleep(0.02)
    return OUTCOME

print(make(plan(outputs), work, wait=mode == "wait").state, flush=True)
"""


def start(outputs, mode, script=SCRIPT, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", script, str(outputs), mode],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def end(process):
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out.split(), err


def test_a_run_with_a_living_owner_is_refused_or_waited_for_and_a_killed_one_goes_on(tmp_path):
    owner = start(tmp_path, "hold")
    assert owner.stdout.readline() == "working\n"
    try:
        with pytest.raises(ConfigError) as caught:
            make(plan(tmp_path), never)
        [run] = candidates(tmp_path)
        assert str(caught.value) == (
            f"{run.path} is being made by process {owner.pid} on {socket.gethostname()}. Wait for it, or end it first."
        )
        assert run.state == "running"
    finally:
        owner.kill()
        owner.communicate()
    assert run.state == "unfinished"

    owner = start(tmp_path, "hold")
    assert owner.stdout.readline() == "working\n"
    waiting = start(tmp_path, "wait")
    time.sleep(1.2)  # past its first try for the lock, or before it: the outcome is the same
    (tmp_path / "release").touch()
    assert end(owner)[:2] == (0, ["done"])
    assert end(waiting)[:2] == (0, ["done"])  # and no "working"


def test_processes_that_start_at_once_make_a_run_once(tmp_path):
    ended = [end(process) for process in [start(tmp_path, "wait") for _ in range(2)]]
    assert [code for code, _, _ in ended] == [0, 0]
    assert sorted(words for _, words, _ in ended) == [["done"], ["working", "done"]]


def test_the_other_ranks_end_when_rank_zero_failed(tmp_path):
    code, _, _ = end(start(tmp_path, "fail", RANK="0", TORCHELASTIC_RUN_ID="one"))
    assert code == 1
    code, words, err = end(start(tmp_path, "go", RANK="1", TORCHELASTIC_RUN_ID="one"))
    assert (code, words) == (1, [])
    assert "rank 0 failed: RuntimeError: no luck" in err


def test_a_rank_without_a_launch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError, match=r"this launch has no id of its own. Unset it, or start with srun, or with"):
        make(plan(tmp_path), never)


def test_a_rank_waits_as_long_as_somebody_is_at_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "IDLE_SECONDS", 0.0)
    looks = iter([None, None, None, "begun"])
    with owned(tmp_path, wait=False):
        assert owner.wait_for_rank_zero(tmp_path, lambda: next(looks)) == "begun"
    with pytest.raises(LaunchError, match=rf"has waited 0 minutes for rank 0 to begin {tmp_path}, and nobody is at it"):
        owner.wait_for_rank_zero(tmp_path, lambda: None)


SRUN = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "5", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("environment", "rank", "launch"),
    [
        ({}, 0, None),
        ({"RANK": "3", "TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "2"}, 3, "a:2"),
        ({"SLURM_PROCID": "1"} | SRUN, 1, "77.5:0"),
        ({"SLURM_PROCID": "0", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "4"}, 0, None),  # a batch script
    ],
)
def test_rank_and_launch_come_from_the_launcher(environment, rank, launch, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (process_rank(), launch_id()) == (rank, launch)


# Finding


TOKENIZERS = {"stages": ("tokenizer",)}


def test_a_finished_run_is_found_by_name_folder_path_and_glob_in_any_form_of_hangul(tmp_path):
    run = make(plan(tmp_path, name=unicodedata.normalize("NFD", "한글")), succeed)
    make(plan(tmp_path, name="other", vocab_size=9000), succeed)
    with pytest.raises(RuntimeError):  # one that is not finished hides none
        make(plan(tmp_path, name="한글", vocab_size=7000), failing(RuntimeError()))
    for given in ("한글", unicodedata.normalize("NFC", run.path.name), str(run.path), "tokenizer/한글-*"):
        assert find_run(tmp_path, given, **TOKENIZERS) == run


def test_what_cannot_be_found_lists_the_candidates(tmp_path):
    none = r"^key=x: there is no run x under .*/\. "
    with pytest.raises(ConfigError, match=none + r"There is no finished tokenizer run yet: .* stage=tokenizer\.$"):
        find_run(tmp_path, "x", key="key", **TOKENIZERS)
    one = make(plan(tmp_path, name="mine"), succeed)
    two = make(plan(tmp_path, name="mine", vocab_size=9000), succeed)
    names = [f"tokenizer/{run.path.name}" for run in (one, two)]
    both = rf"({', '.join(names)}|{', '.join(reversed(names))})"  # by time, to the second
    with pytest.raises(ConfigError, match=none + rf"Runs: {both}\.$"):
        find_run(tmp_path, "x", key="key", **TOKENIZERS)
    with pytest.raises(ConfigError, match=r"^mine means 2 runs: .*mine-\w+, .*mine-\w+\. Give one of these\.$"):
        find_run(tmp_path, "mine", **TOKENIZERS)
    with pytest.raises(ConfigError, match=r"^key=.* is a tokenizer run, but a pretrain run is needed\. There is no "):
        find_run(tmp_path, str(one.path), key="key", stages=("pretrain",))
    with pytest.raises(RuntimeError):
        make(plan(tmp_path, name="broken"), failing(RuntimeError()))
    with pytest.raises(ConfigError, match=r"broken-\w+ is failed, not done\. Start it again to finish it"):
        find_run(tmp_path, "broken", **TOKENIZERS)


@pytest.mark.parametrize("text", ['{"stage": "tok', "[]"])
def test_a_torn_record_is_one_line_and_hides_no_other_run(text, tmp_path, lines):
    torn = make(plan(tmp_path), succeed)
    whole = make(plan(tmp_path, vocab_size=9000), succeed)
    (torn.path / "run.json").write_text(text)
    for read in (lambda: load(torn.path), lambda: make(plan(tmp_path), never)):
        with pytest.raises(DamagedError, match=r"run\.json: .*, or remove the folder to make the run again\.$"):
            read()
    lines.clear()
    assert candidates(tmp_path) == [whole]
    assert len(lines) == 1
    assert lines[0].startswith(f"left out: {torn.path}")
    assert make(plan(tmp_path, reuse=Reuse.never), succeed).state == "done"


# Files


def test_what_is_written_replaces_what_is_there_whole_or_not_at_all(tmp_path):
    path, model = tmp_path / "a.json", tmp_path / "in" / "model"
    write_json(path, {"글": 1})
    for fails in (lambda: write_text(path, "\ud800"), lambda: write_json(path, float("inf"))):
        with pytest.raises(ValueError):
            fails()
    assert path.read_text(encoding="utf-8") == '{\n  "글": 1\n}\n'
    umask = os.umask(0o022)
    for text in ("old", "new"):
        with whole_folder(model) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / text).write_text(text)
            (folder / "deep" / text).chmod(0o600)  # as safetensors makes files
            assert not (model / "deep" / text).exists()
    os.umask(umask)
    with pytest.raises(RuntimeError), whole_folder(model) as folder:
        (folder / "half").touch()
        raise RuntimeError
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {"a.json", "in/model/deep/new"}
    assert (model / "deep" / "new").stat().st_mode & 0o777 == 0o644


# Metrics


def test_metrics_go_on_where_the_checkpoint_was_and_are_read_without_a_torn_last_line(tmp_path):
    path, records = (
        tmp_path / "m.jsonl",
        [{"step": 1, "train/loss": 2.5}, {"step": 2, "text": "줄\u2028", "val/loss": 2}],
    )
    metrics = MetricsLog(path)
    metrics.append(records[0])
    size = metrics.size
    metrics.append({"step": 22})
    metrics.close()
    metrics = MetricsLog(path, size=size)
    metrics.append(records[1])
    assert metrics.size == path.stat().st_size
    metrics.close()
    whole = path.read_bytes()
    path.write_bytes(whole + '{"step": 3, "text": "잘'.encode()[:-1])
    assert read_metrics(path) == records and history(records, "val/loss") == [(2, 2)]
    with pytest.raises(
        DamagedError, match=r"m\.jsonl has \d+ bytes, but the checkpoint counts on 999\. Run with reuse"
    ):
        MetricsLog(path, size=999)
    path.write_bytes(whole.replace(b'"step": 1,', b'"step'))
    with pytest.raises(DamagedError, match=r"m\.jsonl:1: this is no JSON\. Run with reuse=never"):
        read_metrics(path)


# Errors


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("a=1 is wrong"), 2, "a=1 is wrong"),
        (ConfigError("two\nlines"), 2, "two lines"),
        (DataError("a.jsonl:1: bad"), 65, "a.jsonl:1: bad"),
        (DivergedError("nan"), 70, "nan"),
        (DamagedError("torn"), 74, "torn"),
        (MachineError("no room"), 74, "no room"),
        (StoppedError("stopped by SIGTERM"), 75, "stopped by SIGTERM"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), 74, "x.txt: No such file or directory"),
        (OSError("no space"), 74, "input or output: no space"),
        (KeyboardInterrupt(), 130, "interrupted. The same command goes on from what was saved."),
    ],
)
def test_what_is_no_bug_ends_in_one_line_and_its_exit_code(error, code, line, capsys):
    with pytest.raises(SystemExit) as caught, one_line_errors():
        raise error
    assert caught.value.code == code
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_a_bug_keeps_its_traceback_and_hydra_full_error_every_other(monkeypatch):
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigError), one_line_errors():
        raise ConfigError("a=1 is wrong")


# Owners on other hosts, where locks are not shared


def owner_elsewhere(folder, *, seconds_ago):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".lock").touch()
    (folder / ".owner.json").write_text('{"host": "elsewhere", "pid": 7}', encoding="utf-8")
    then = time.time() - seconds_ago
    os.utime(folder / ".owner.json", (then, then))


def folder_of_plan(outputs):
    return outputs / "tokenizer" / f"bpe-law-{plan(outputs).key}"


def test_an_owner_elsewhere_is_left_alone_until_it_gives_no_sign_of_life_and_one_here_that_died_is_taken_over(tmp_path):
    folder = folder_of_plan(tmp_path)
    owner_elsewhere(folder, seconds_ago=5)
    with pytest.raises(ConfigError, match=r"is being made by process 7 on elsewhere. Wait for it, or end it first"):
        make(plan(tmp_path), never)
    owner_elsewhere(folder, seconds_ago=120)
    assert make(plan(tmp_path), succeed).state == "done"
    assert not (folder / ".owner.json").exists()
    (folder / ".owner.json").write_text(json.dumps({"host": socket.gethostname(), "pid": 7}), encoding="utf-8")
    assert make(plan(tmp_path, reuse=Reuse.never), succeed).state == "done"


def test_an_owner_says_that_it_lives_and_goes_on_after_an_error(tmp_path, monkeypatch, lines):
    monkeypatch.setattr("llm.run.owner.BEAT_SECONDS", 0.01)
    touch, beats = os.utime, []

    def hiccup(path, *times, **options):
        if Path(path).name == ".owner.json":
            beats.append(path)
            if len(beats) == 2:
                raise OSError(errno.EIO, "Input/output error")
        touch(path, *times, **options)

    monkeypatch.setattr("llm.run.owner.os.utime", hiccup)

    def work(run):
        path = run.path / ".owner.json"
        assert json.loads(path.read_text(encoding="utf-8")) == {"host": socket.gethostname(), "pid": os.getpid()}
        while len(beats) < 4:
            time.sleep(0.01)
        return OUTCOME

    run = make(plan(tmp_path), work)
    assert [line for line in lines if "heartbeat" in line] == [
        f"{run.path / '.owner.json'}: no heartbeat for now ([Errno 5] Input/output error); after a minute another host "
        "may take over",
    ]


@pytest.mark.parametrize(
    ("left", "said"),
    [('{"host": "elsewhere", "pid": 7}', "process 7 on elsewhere"), (None, "another process")],
    ids=["at it", "done with it"],
)
def test_an_owner_that_was_taken_over_ends_and_leaves_the_run_to_the_other(left, said, tmp_path):
    beating = SCRIPT.replace(
        "outputs, mode =", "import llm.run.owner\nllm.run.owner.BEAT_SECONDS = 0.02\noutputs, mode ="
    )
    owner = start(tmp_path, "hold", script=beating)
    assert owner.stdout.readline() == "working\n"
    [folder] = (tmp_path / "tokenizer").iterdir()
    before = (folder / "run.json").read_bytes()
    (folder / "other.json").write_text(left or "")
    (folder / "other.json").replace(folder / ".owner.json") if left else (folder / ".owner.json").unlink()
    code, words, err = end(owner)
    assert (code, words) == (74, [])
    assert err.splitlines()[-1] == (
        f"error: {folder} was taken over by {said}, for this process gave no sign of life for a minute. It ends here, "
        "so that two do not write one run."
    )
    assert (folder / "run.json").read_bytes() == before
    assert (folder / ".owner.json").exists() == (left is not None)


def test_the_exit_code_is_right_where_stderr_takes_nothing():
    program = "from llm.errors import fail\nfail('there is nowhere to say it', 74)"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=full)
    assert done.returncode == 74
