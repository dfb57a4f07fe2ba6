"""The jobs of a sweep: each dies alone, is tried again by what ended it, is done once, and leaves nothing running."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from sweeps import SCRIPT, Sweep

from llm.config.sweeping import PoolConfig, RetryConfig
from llm.errors import DamagedError
from llm.sweep import process
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def make(*overrides: str, cores: int = 2, **settings) -> Sweep:
        script = tmp_path / "train.py"
        script.write_text(SCRIPT.format(outputs=str(tmp_path)), encoding="utf-8")
        monkeypatch.setattr(process, "TRAIN", script)
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
    again = six.run()
    assert {name: each.state for name, each in again.items()} == {n: each.state for n, each in standings.items()}
    assert six.starts() == {"a": 1, "b": 2, "cc": 1, "d": 2, "e": 2, "fff": 1}


@pytest.mark.parametrize(
    ("job", "retries", "starts", "state"),
    [
        ("kill_once=a", {"killed": 1}, 2, "done"),
        ("kill=a", {"killed": 2}, 3, "failed"),
        ("memory=a", {"out_of_memory": 1}, 2, "failed"),
        ("memory=a", {"killed": 5, "failed": 5}, 1, "failed"),
        ("diverge=a", {"diverged": 1}, 2, "failed"),
        ("raise=a", {"failed": 1}, 2, "failed"),
        ("data=a", {"failed": 3}, 1, "failed"),  # bad data stay bad
        ("mute=a", {}, 1, "failed"),
    ],
)
def test_a_job_is_tried_again_by_what_ended_it(sweep, job, retries, starts, state):
    one = sweep(job, retries=RetryConfig(**{"killed": 0} | retries))
    assert one.run()["a"].state == state
    assert one.starts() == {"a": starts}


@pytest.mark.parametrize(
    ("job", "kind", "message"),
    [
        ("diverge=a", "diverged", "step 3: the loss is not finite"),
        ("data=a", "data", "text.txt:3: this is no text"),
        ("mute=a", "failed", "exit code 0, but no finished run"),
    ],
)
def test_the_ledger_keeps_why_a_job_failed(sweep, job, kind, message):
    one = sweep(job)
    one.run()
    (attempt,) = one.ledger()["a"]["attempts"]
    assert (attempt["kind"], attempt["message"]) == (kind, message)


def test_a_job_that_failed_too_often_is_left_out_until_the_limit_is_raised(sweep):
    one = sweep("raise=a", max_attempts=2)
    one.run(), one.run()
    said = one.run()["a"].result.message
    assert said == "has failed 2 times; hydra.launcher.max_attempts=2. Raise it"
    assert one.starts() == {"a": 2}
    sweep("raise=a", max_attempts=3).run()
    assert one.starts() == {"a": 3}


def test_fail_fast_stops_the_others_which_can_go_on(sweep):
    jobs = sweep("hold=a", "0.5=b", "raise_late=c", "ok=d", fail_fast=True, cores=3, jobs=3)
    standings = jobs.run()
    assert standings["c"].state == "failed"
    assert standings["a"].state == "stopped" and standings["d"].state == "stopped"
    assert jobs.ledger()["a"]["attempts"][0]["exit_code"] == 75


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


def test_what_a_job_says_is_in_its_own_log(sweep, capfd):
    jobs = sweep("ok=a", "ok=b")
    jobs.run()
    said = [p.read_text() for p in sorted(jobs.outputs.glob("sweeps/test/jobs/*/console.log"))]
    assert said == ["says a\n", "says b\n"]
    assert "says" not in capfd.readouterr().out


def test_a_job_file_of_another_job_is_refused(sweep):
    sweep("ok=a").run()
    with pytest.raises(DamagedError, match=r"job.json is of another job. Remove it to have the job looked at anew"):
        sweep("ok=b").run()
    path = sweep("ok=a").jobs()[0].folder / "job.json"
    path.write_text("{")
    with pytest.raises(DamagedError, match=r"job.json cannot be read .* Remove it"):
        sweep("ok=a").run()


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from sweeps import Sweep
from llm.config.sweeping import PoolConfig
from llm.errors import one_line_errors
from llm.sweep import process
if __name__ == "__main__":
    folder = Path({folder!r})
    process.TRAIN = folder / "train.py"
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


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to it", "to its group"])  # as a terminal does that closes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
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
    job.begin(job.read())
    late = one.driver(finder=SimpleNamespace(find=lambda config: None))  # as if it looks before that comes to its end
    late._start = lambda job: None
    late._start_ready()  # counts the attempt that is under way
    del late._start
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
        record = job.read()
        record.state = "running"
        job.write(record)
    assert one.run()["a"].state == "done"
    assert not left.exists() and one.ledger()["a"]["state"] == "done"
    assert one.starts() == {"a": 1}


def test_a_job_whose_run_another_process_makes_is_waited_for_without_counting_as_a_failure(sweep, tmp_path):
    from llm.run.owner import owned

    script = sweep("ok=a")
    busy = tmp_path / "pretrain" / "a"
    (tmp_path / "train.py").write_text(
        SCRIPT.format(outputs=str(tmp_path)).replace(
            'print("says"', '(tell("busy"), sys.exit(2)) if times == 0 else print("says"'
        )
    )
    driver = script.driver()
    with owned(busy, wait=False):
        while not driver.jobs or not driver.jobs[0].not_before:  # until the first attempt was found to be refused
            driver._start_ready()
            for job, ended in driver._backend.ended(0.1):
                driver._settle(job, ended)
    assert [each.state for each in driver.run()] == ["done"]
    assert [attempt["kind"] for attempt in script.ledger()["a"]["attempts"]] == ["busy", "done"]


@pytest.mark.parametrize("kills", [3])
def test_a_driver_that_is_killed_again_and_again_ends_in_the_same_and_does_no_job_twice(tmp_path, request, kills):
    kills = 20 if request.config.getoption("--storm") else kills
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
    assert jobs.starts() == {"a": 1, "b": 1}
    assert [attempt["kind"] for attempt in jobs.ledger()["a"]["attempts"]] == ["done", "done"]
