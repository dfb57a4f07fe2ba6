"""The jobs of a sweep: each dies alone, is tried again by what ended it, is done once, and leaves nothing running."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweeps import SCRIPT, Sweep

from llm.config.sweeping import PoolConfig, RetryConfig
from llm.errors import DamagedError
from llm.run.launch import Result
from llm.sweep import pool
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def make(*overrides: str, **settings) -> Sweep:
        script = tmp_path / "train.py"
        script.write_text(SCRIPT.format(outputs=str(tmp_path)), encoding="utf-8")
        monkeypatch.setattr(pool, "TRAIN", script)
        monkeypatch.setattr("llm.sweep.driver.WAIT_SECONDS", 0.1)
        return Sweep(tmp_path, list(overrides), PoolConfig(**settings))

    return make


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_of_six_jobs_three_fail_each_alone_and_the_same_start_again_runs_only_those(sweep, tmp_path):
    six = sweep("ok=a", "raise=b", "ok=cc", "kill=d", "memory=e", "ok=fff", retries=RetryConfig(killed=0))
    standings = six.run()
    states = dict.fromkeys(("a", "cc", "fff"), "done") | dict.fromkeys("bde", "failed")
    assert {name: each.state for name, each in standings.items()} == states
    assert [standings[name].run.objective for name in ("a", "cc", "fff")] == [1.0, 2.0, 3.0]
    assert {name: (standings[name].result.kind, standings[name].result.message) for name in "bde"} == {
        "b": ("failed", "RuntimeError: a bug"),
        "d": ("killed", "killed by SIGKILL, perhaps for want of memory"),
        "e": ("out_of_memory", "MemoryError"),
    }
    assert (six.jobs()[0].folder / "console.log").read_text() == "says a\n"
    assert {path.read_text().split()[1] for path in tmp_path.glob("pretrain/*/starts.txt")} == {"1"}  # thread
    shutil.rmtree(tmp_path / "pretrain" / "a")  # is made again
    assert {name: each.state for name, each in six.run().items()} == states
    assert six.starts() == {"a": 1, "b": 2, "cc": 1, "d": 2, "e": 2, "fff": 1}
    assert [attempt["kind"] for attempt in six.ledger()["a"]["attempts"]] == ["done", "done"]


@pytest.mark.parametrize(
    ("job", "retries", "starts", "state"),
    [
        ("kill_once=a", {"killed": 1}, 2, "done"),
        ("kill=a", {"killed": 2}, 3, "failed"),
        ("memory=a", {"out_of_memory": 1}, 2, "failed"),
        ("diverge=a", {"killed": 5, "failed": 5}, 1, "failed"),
        ("data=a", {"failed": 3}, 1, "failed"),  # bad data stay bad
        ("mute=a", {}, 1, "failed"),
    ],
)
def test_a_job_is_tried_again_by_what_ended_it(sweep, job, retries, starts, state):
    one = sweep(job, retries=RetryConfig(**{"killed": 0} | retries))
    ended = one.run()["a"]
    assert (ended.state, one.starts()) == (state, {"a": starts})
    attempts = [(each["kind"], each["message"]) for each in one.ledger()["a"]["attempts"]]
    assert len(attempts) == starts and attempts[-1] == (ended.result.kind, ended.result.message or None)


def test_a_jobs_file_that_cannot_be_read_is_named(sweep):
    one = sweep("ok=a")
    (one.jobs()[0].folder / "job.json").write_text("{")
    with pytest.raises(DamagedError, match=r"job.json cannot be read"):
        one.run()


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from sweeps import Sweep
from llm.config.sweeping import PoolConfig
from llm.errors import one_line_errors
from llm.sweep import pool
if __name__ == "__main__":
    folder = Path({folder!r})
    pool.TRAIN = folder / "train.py"
    with one_line_errors():
        Sweep(folder, sys.argv[1:], PoolConfig(grace_seconds=20)).run()
"""


def start(folder: Path, *overrides: str, **variables: str) -> "subprocess.Popen[str]":
    """A driver in a process of its own."""
    (folder / "train.py").write_text(SCRIPT.format(outputs=str(folder)), encoding="utf-8")
    program = folder / "driver.py"
    program.write_text(PROGRAM.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(folder)))
    command, environment = [sys.executable, str(program), *overrides], os.environ | variables
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, cwd=folder, start_new_session=True
    )


def holding(folder: Path) -> list[int]:
    """The jobs that hold, by their processes."""
    return [int(path.read_text()) for path in folder.glob("pretrain/*/holds") if path.read_text()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_has_the_jobs_save_and_end_with_75(tmp_path, number):
    driver = start(tmp_path, "hold=a", "hold=b", "ok=c")
    wait_for(lambda: len(holding(tmp_path)) == 2)
    left = holding(tmp_path)
    os.killpg(driver.pid, number)  # its group, as a terminal does
    _, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 75
    assert f"error: stopped by {number.name}. Start the same command again to go on." in said
    assert not any(map(is_alive, left))
    jobs = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("sweeps/test/jobs/*/job.json"))]
    assert [(job["state"], job["attempts"][-1]["exit_code"]) for job in jobs] == [("stopped", 75)] * 2


def test_a_driver_that_is_killed_takes_its_jobs_with_it_and_started_again_does_none_twice(tmp_path, request):
    kills = 20 if request.config.getoption("--storm") else 2
    jobs = [f"hold={number}" for number in range(2 * kills + 2)]  # each holds at its first start
    for number in range(1, kills + 1):
        driver = start(tmp_path, *jobs, HOLD="once")
        wait_for(lambda number=number: len(holding(tmp_path)) == 2 * number)
        driver.kill()
        driver.communicate(timeout=PATIENCE)
        wait_for(lambda: not any(map(is_alive, holding(tmp_path))))
    last = start(tmp_path, *jobs, HOLD="never")
    _, said = last.communicate(timeout=PATIENCE)
    assert last.returncode == 0, said
    sweep = Sweep(tmp_path, jobs)
    assert {record["state"] for record in sweep.ledger().values()} == {"done"}
    assert [sweep.starts()[str(number)] for number in range(2 * kills + 2)] == [2] * 2 * kills + [1, 1]


def test_two_drivers_share_a_sweep_and_no_job_is_done_twice(tmp_path):
    jobs = [f"ok={name}" for name in "abcdefgh"]
    drivers = [start(tmp_path, *jobs, MEET="3") for _ in range(2)]  # one has room for two
    said = [driver.communicate(timeout=PATIENCE)[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    sweep = Sweep(tmp_path, jobs)
    assert sweep.starts() == dict.fromkeys("abcdefgh", 1)
    ledger = sweep.ledger().values()
    assert {record["state"] for record in ledger} == {"done"}
    assert len({record["attempts"][0]["driver"] for record in ledger}) == 2


def test_what_another_driver_had_begun_before_and_ends_is_not_done_again_be_it_done_or_failed(sweep):
    both = sweep("ok=a", "ok=b")
    of_another = both.jobs()
    for job in of_another:
        job.begin("another")
    late = both.driver(find=lambda config: None)  # as if it looks before they come to their end
    for job in late._source.more():
        late._add(job)
    of_another[1].end(Result("failed", "a bug"))
    sweep("ok=a").run()
    assert {str(each.config.name): each.state for each in late.run()} == {"a": "done", "b": "failed"}
    assert both.starts() == {"a": 1}


def test_what_a_killed_driver_had_begun_to_write_of_a_job_is_removed_when_its_run_is_found(sweep):
    one = sweep("ok=a", "ok=b")
    one.run()
    kept, other = one.jobs()
    other.reload()
    other.attempts[-1].kind = None  # its driver did not see the end
    other.write()
    left = [job.folder / ".tmp-job.json-1" for job in (kept, other)]
    for path in left:
        path.write_text("{", encoding="utf-8")
    assert {each.state for each in one.run().values()} == {"done"}
    assert not any(path.exists() for path in left)
    assert {record["state"] for record in one.ledger().values()} == {"done"}
    assert one.starts() == {"a": 1, "b": 1}


def test_a_job_whose_run_another_process_makes_is_tried_again_without_counting_as_a_failure(sweep):
    one = sweep("busy_once=a")
    assert one.run()["a"].state == "done"
    assert [attempt["kind"] for attempt in one.ledger()["a"]["attempts"]] == ["busy", "done"]
