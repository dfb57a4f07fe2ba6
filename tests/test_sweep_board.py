"""What a person sees of a sweep: jobs by state, progress, the best so far and the time left."""

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from sweeps import Sweep

from llm.run.announcing import Result, write_result
from llm.run.record import key_of
from llm.run.runs import Run
from llm.sweep.board import Board
from llm.sweep.jobs import Job, NewMetrics

SOURCE = SimpleNamespace(to_come=lambda: 0, best=lambda: "1.2500: ok=b")


def board_of(tmp_path: Path, *, terminal: bool = True) -> tuple[Board, io.StringIO, dict[int, Job]]:
    """Two of four jobs done in 60 s each, one at step 5 of 20, one waiting."""
    jobs = Sweep(tmp_path, ["ok=a", "ok=b", "ok=c", "ok=d"]).jobs()
    for job in jobs[:2]:
        job.state, job.run = "done", Run(tmp_path, {"seconds": 60.0})
    run = tmp_path / "pretrain" / "c"
    run.mkdir(parents=True)
    settings = {"trainer": {"max_steps": 20}}
    record = {"stage": "pretrain", "name": "c", "status": "running", "identity": {"settings": settings}}
    record["key"] = key_of(record["identity"])
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").write_text(
        '{"step": 4, "train/loss": 9.0}\n{"step": 5, "train/loss": 3.5}\n{"step": 6, "tr'
    )
    write_result(jobs[2].folder, Result(stage="pretrain", run=str(run)))
    jobs[2].state, jobs[2].started = "running", time.monotonic() - 90
    said = io.StringIO()
    console = Console(file=said, force_terminal=terminal, width=120, color_system=None)
    return Board(console), said, {job.number: job for job in jobs}


def test_the_table_has_states_progress_best_and_time_left(tmp_path):
    board, said, jobs = board_of(tmp_path)
    with board.shown(jobs, SOURCE):
        shown = Console(file=io.StringIO(), width=120, record=True)
        shown.print(board.table())
    lines = shown.export_text().splitlines()
    assert lines[0] == "1 running, 1 waiting, 2 done; best 1.2500: ok=b; about 1 min left"
    assert [cell.strip() for cell in lines[4].strip("│").split("│")] == ["ok=c", "5/20", "3.500", "1.5"]
    assert "1 running, 1 waiting, 2 done" in said.getvalue()


def test_without_a_terminal_nothing_is_drawn_but_lines(tmp_path, capsys):
    board, said, jobs = board_of(tmp_path, terminal=False)
    with board.shown(jobs, SOURCE):
        board.say("ok=a: done")
        board.refresh()
    assert said.getvalue() == ""
    assert "ok=a: done" in capsys.readouterr().err


def time_left(*, at_work: list[float], queued: int = 0, waiting: int = 0, to_come: int = 0, took: list[float]) -> str:
    """What is said where jobs have run for so many seconds, and finished ones have taken so many."""
    jobs = [SimpleNamespace(state="done", run=Run(Path(), {"seconds": each})) for each in took]
    jobs += [SimpleNamespace(state=state, run=None) for state in ["waiting"] * waiting + ["queued"] * queued]
    jobs += [SimpleNamespace(state="running", run=None, started=time.monotonic() - each) for each in at_work]
    board = Board(Console(file=io.StringIO()))
    with board.shown(dict(enumerate(jobs)), SimpleNamespace(to_come=lambda: to_come, best=lambda: None)):
        return board.time_left()


@pytest.mark.parametrize(
    ("facts", "minutes"),
    [
        ({"took": [1200.0], "at_work": [0.0] * 4, "waiting": 32}, 180),  # 36 jobs of 20 min, 4 at once
        ({"took": [1200.0], "at_work": [0.0] * 4, "to_come": 36}, 200),  # of a search, whose points are not chosen yet
        ({"took": [600.0], "at_work": [0.0] * 4, "queued": 32}, 90),  # in Slurm's queue
        ({"took": [600.0, 1200.0], "at_work": [450.0, 450.0], "waiting": 2}, 22),  # 4 * 15 min, less 15, by 2
        ({"took": [600.0], "at_work": [9000.0]}, 0),  # longer than any: who knows
    ],
)
def test_the_time_left_is_that_of_the_jobs_to_come_as_many_at_once_as_run_now(facts, minutes):
    assert time_left(**facts) == f"about {minutes} min left"


@pytest.mark.parametrize("facts", [{"took": [], "at_work": [60.0]}, {"took": [60.0], "at_work": [], "queued": 3}])
def test_before_a_job_has_ended_or_while_none_runs_no_time_is_said(facts):
    assert time_left(**facts) == ""


def test_metrics_are_read_once_each_and_anew_where_a_start_has_cut_them_back(tmp_path):
    path, metrics = tmp_path / "metrics.jsonl", NewMetrics()
    assert metrics.read(tmp_path) == metrics.read(None) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert metrics.read(tmp_path) == [{"step": 1}, {"step": 2}]
    assert metrics.read(tmp_path) == [] and metrics.last == {"step": 2}
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert metrics.read(tmp_path) == [{"step": 3}]
    path.write_text('{"step": 1}\n')
    assert metrics.read(tmp_path) == [{"step": 1}]
    path.write_text('{"step": 1, "seconds": 9.5}\n{"step": 2}\n')  # past where it was: the rest of a line is none
    assert metrics.read(tmp_path) == [{"step": 2}]
