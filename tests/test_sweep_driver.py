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
from llm.sweep import pool
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def make(*overrides: str, cores: int = 2, **settings) -> Sweep:
        script = tmp_path / "train.py"
        script.write_text(SCRIPT.format(outputs=str(tmp_path)), encoding="utf-8")
        monkeypatch.setattr(pool, "TRAIN", script)
        return Sweep(tmp_path, list(overrides), PoolConfig(**settings), cores)

    return make


def wait_for(condition) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("nothing came in 60 seconds")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids(folder: Path) -> list[int]:
    return [int(p.read_text().split()[0]) for p in folder.glob("pretrain/*/starts.txt") if p.read_text().strip()]


SIX = ("ok=a", "raise=b", "ok=cc", "kill=d", "memory=e", "ok=fff")


def test_of_six_jobs_three_fail_each_alone_and_the_same_start_again_runs_only_those(sweep):
    six = sweep(*SIX, retries=RetryConfig(killed=0))
    standings = six.run()
    assert {name: each.state for name, each in standings.items()} == {
        **dict.fromkeys(("a", "cc", "fff"), "done"),
        **dict.fromkeys("bde", "failed"),
    }
    assert [standings[name].run.objective for name in ("a", "cc", "fff")] == [1.0, 2.0, 3.0]
    assert {name: (standings[name].result.kind, standings[name].result.message) for name in "bde"} == {
        "b": ("failed", "RuntimeError: a bug"),
        "d": ("killed", "killed by SIGKILL, perhaps for want of memory"),
        "e": ("out_of_memory", "MemoryError"),
    }
    assert (six.jobs()[0].folder / "console.log").read_text() == "says a\n"
    again = six.run()
    assert {name: each.state for name, each in again.items()} == {n: each.state for n, each in standings.items()}
    assert six.starts() == {"a": 1, "b": 2, "cc": 1, "d": 2, "e": 2, "fff": 1}


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


def test_no_more_jobs_run_at_once_than_are_asked_for_and_each_has_its_threads(sweep):
    jobs = sweep("0.3=a", "0.3=b", "0.3=c", cores=8, jobs=2)
    driver = jobs.driver()
    most = 0
    ended = driver._backend.ended

    def counting(seconds: float):
        nonlocal most
        most = max(most, len(driver._backend.running))
        return ended(0.05)

    driver._backend.ended = counting
    driver.run()
    assert most == 2
    assert {path.read_text().split()[1] for path in jobs.outputs.glob("pretrain/*/starts.txt")} == {"4"}


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


def start(folder: Path, *overrides: str) -> "subprocess.Popen[str]":
    """A driver in a process of its own."""
    (folder / "train.py").write_text(SCRIPT.format(outputs=str(folder)), encoding="utf-8")
    program = folder / "driver.py"
    program.write_text(PROGRAM.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(folder)))
    command = [sys.executable, str(program), *overrides]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder, start_new_session=True)


@pytest.mark.parametrize(
    ("number", "send"),  # to its group, as a terminal does that closes
    [(signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg), (signal.SIGHUP, os.killpg)],
)
def test_a_signal_has_the_jobs_save_and_end_with_75(tmp_path, number, send):
    driver = start(tmp_path, "hold=a", "hold=b", "ok=c")
    wait_for(lambda: len(list(tmp_path.glob("pretrain/*/holds"))) == 2)
    left = pids(tmp_path)
    send(driver.pid, number)
    _, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 75
    assert f"error: stopped by {number.name}. Start the same command again to go on." in said
    assert not any(map(is_alive, left))
    jobs = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("sweeps/test/jobs/*/job.json"))]
    assert [(job["state"], job["attempts"][-1]["exit_code"]) for job in jobs] == [("stopped", 75)] * 2


def test_no_job_outlives_a_driver_that_is_killed(tmp_path):
    driver = start(tmp_path, "hold=a", "hold=b")
    wait_for(lambda: len(list(tmp_path.glob("pretrain/*/holds"))) == 2)
    left = pids(tmp_path)
    driver.kill()
    driver.communicate(timeout=PATIENCE)
    wait_for(lambda: not any(map(is_alive, left)))


def test_two_drivers_share_a_sweep_and_no_job_is_done_twice(tmp_path):
    jobs = [f"meet={name}" for name in "abcdefgh"]
    drivers = [start(tmp_path, *jobs) for _ in range(2)]
    said = [driver.communicate(timeout=PATIENCE)[1] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    sweep = Sweep(tmp_path, jobs)
    assert sweep.starts() == dict.fromkeys("abcdefgh", 1)
    ledger = sweep.ledger().values()
    assert {record["state"] for record in ledger} == {"done"}
    assert len({record["attempts"][0]["driver"] for record in ledger}) == 2


def test_a_job_that_another_driver_had_begun_before_and_ends_is_not_done_again(sweep):
    one = sweep("ok=a", "ok=bb")
    job, _ = one.jobs()
    job.begin("another")
    late = one.driver(find=lambda config: None)  # as if it looks before that comes to its end
    for each in late._source.more():
        late._add(each)  # counts the attempt that is under way
    assert {each.state for each in one.run().values()} == {"done"}
    assert {each.state for each in late.run()} == {"done"}
    assert one.starts() == {"a": 1, "bb": 1}


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_a_killed_driver_had_begun_to_write_of_a_job_is_removed_when_its_run_is_found(sweep, is_kept):
    one = sweep("ok=a")
    one.run()
    [job] = one.jobs()
    left = job.folder / ".tmp-job.json-1"
    left.write_text("{", encoding="utf-8")
    if not is_kept:
        job.reload()
        job.attempts[-1].kind = None
        job.write()
    assert one.run()["a"].state == "done"
    assert not left.exists() and one.ledger()["a"]["state"] == "done"
    assert one.starts() == {"a": 1}


def test_a_job_whose_run_another_process_makes_is_tried_again_without_counting_as_a_failure(sweep):
    one = sweep("busy_once=a")
    assert one.run()["a"].state == "done"
    assert [attempt["kind"] for attempt in one.ledger()["a"]["attempts"]] == ["busy", "done"]


def test_a_driver_that_is_killed_again_and_again_ends_in_the_same_and_does_no_job_twice(tmp_path, request):
    kills = 20 if request.config.getoption("--storm") else 3
    jobs = [f"0.{number}={name}" for number, name in enumerate("abcdefgh", 1)]
    done: dict[str, float] = {}
    for number in range(kills):
        driver = start(tmp_path, *jobs)
        time.sleep(0.7 + 0.37 * (number % 7))
        driver.kill()
        driver.communicate(timeout=PATIENCE)
        for path in tmp_path.glob("pretrain/*/run.json"):
            text = path.read_text()
            if text and json.loads(text)["status"] == "done":  # the stand-in does not write it whole
                stamp = path.stat().st_mtime
                assert done.setdefault(path.parent.name, stamp) == stamp  # done once, and not touched again
    driver = start(tmp_path, *jobs)
    _, said = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, said
    assert {n: json.loads((tmp_path / "pretrain" / n / "run.json").read_text())["status"] for n in "abcdefgh"} == (
        dict.fromkeys("abcdefgh", "done")
    )
    assert all((tmp_path / "pretrain" / name / "run.json").stat().st_mtime == stamp for name, stamp in done.items())


def test_a_run_that_was_removed_is_made_again_by_the_same_command(sweep, tmp_path):
    jobs = sweep("ok=a", "ok=b")
    jobs.run()
    shutil.rmtree(tmp_path / "pretrain" / "a")
    assert {name: each.state for name, each in jobs.run().items()} == {"a": "done", "b": "done"}
    assert [attempt["kind"] for attempt in jobs.ledger()["a"]["attempts"]] == ["done", "done"]
