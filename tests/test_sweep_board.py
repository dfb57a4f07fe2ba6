"""What a person sees of a sweep: jobs by state, progress, the best so far and the time left."""

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from sweeps import Sweep

from llm.run.launch import Result, write_result
from llm.run.record import key_of
from llm.run.runs import Run
from llm.sweep.board import board, time_left


def test_the_table_has_states_progress_best_and_time_left(tmp_path):
    """Two of four jobs done in 60 s each, one at step 5 of 20, one waiting."""
    jobs = Sweep(tmp_path, ["ok=a", "ok=b", "ok=c", "ok=d"]).jobs()
    for job in jobs[:2]:
        job.state, job.run = "done", Run(tmp_path, {"seconds": 60.0})
    run = tmp_path / "pretrain" / "c"
    run.mkdir(parents=True)
    record = {"stage": "pretrain", "name": "c", "status": "running"}
    record["identity"] = {"settings": {"trainer": {"max_steps": 20}}}
    record["key"] = key_of(record["identity"])
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").write_text('{"step": 4, "train/loss": 9.0}\n{"step": 5, "train/loss": 3.5}\n{"step": 6, "')
    write_result(jobs[2].folder, Result(stage="pretrain", run=str(run)))
    jobs[2].state, jobs[2].started = "running", time.monotonic() - 90
    jobs[2].follow()
    shown = Console(file=io.StringIO(), width=120, record=True)
    shown.print(board(jobs, to_come=0, best="1.2500: ok=b"))
    lines = shown.export_text().splitlines()
    assert lines[0] == "1 running, 1 waiting, 2 done; best 1.2500: ok=b; about 1 min left"
    assert [cell.strip() for cell in lines[4].strip("│").split("│")] == ["ok=c", "5/20", "3.500", "1.5"]


@pytest.mark.parametrize(
    ("took", "at_work", "others", "to_come", "said"),
    [
        ([1200.0], [0.0] * 4, ["waiting"] * 32, 0, "about 180 min left"),  # 36 jobs of 20 min, 4 at once
        ([1200.0], [0.0] * 4, [], 36, "about 200 min left"),  # of a search, whose points are not chosen yet
        ([600.0, 1200.0], [450.0, 450.0], ["queued"] * 2, 0, "about 22 min left"),  # 4 * 15 min, less 15, by 2
        ([600.0], [9000.0], [], 0, "about 0 min left"),  # longer than any: who knows
        ([], [60.0], [], 0, ""),
        ([60.0], [], ["queued"] * 3, 0, ""),
    ],
)
def test_the_time_left_is_that_of_the_jobs_to_come_as_many_at_once_as_run_now(took, at_work, others, to_come, said):
    jobs = [SimpleNamespace(state="done", run=Run(Path(), {"seconds": each})) for each in took]
    jobs += [SimpleNamespace(state=state, run=None) for state in others]
    jobs += [SimpleNamespace(state="running", run=None, started=time.monotonic() - each) for each in at_work]
    assert time_left(jobs, to_come) == said


def test_metrics_are_read_once_each_and_anew_where_a_start_has_cut_them_back(tmp_path):
    [job] = Sweep(tmp_path, ["ok=a"]).jobs()
    assert job.follow() == []
    write_result(job.folder, Result(stage="pretrain", run=str(tmp_path)))
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert job.follow() == [{"step": 1}, {"step": 2}]
    assert job.follow() == [] and job.measured == {"step": 2}
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert job.follow() == [{"step": 3}]
    path.write_text('{"step": 1}\n')
    assert job.follow() == [{"step": 1}]
    path.write_text('{"step": 1, "seconds": 9.5}\n{"step": 2}\n')  # past where it was: the rest of a line is none
    assert job.follow() == [{"step": 2}]
