"""What a person sees of a sweep: jobs by state, progress, the best so far and the time left."""

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console
from sweeps import Sweep

from llm.run import Run
from llm.sweep.board import Board
from llm.sweep.driver import Standing
from llm.sweep.pool import Running


def board_of(tmp_path: Path, *, terminal: bool = True) -> tuple[Board, io.StringIO, list[Standing], SimpleNamespace]:
    """Two of four jobs done in 60 s each, one at step 5 of 20, one waiting."""
    jobs = Sweep(tmp_path, ["ok=a", "ok=b", "ok=c", "ok=d"]).jobs()
    standings = [Standing(job, 0) for job in jobs]
    for standing, objective in zip(standings, (2.5, 1.25), strict=False):
        standing.state = "done"
        standing.run = Run(tmp_path, {"objective": objective, "seconds": 60.0})
    run = tmp_path / "pretrain" / "c"
    run.mkdir(parents=True)
    settings = {"trainer": {"max_steps": 20}}
    record = {"stage": "pretrain", "name": "c", "key": "0", "status": "running", "identity": {"settings": settings}}
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").write_text(
        '{"step": 4, "train/loss": 9.0}\n{"step": 5, "train/loss": 3.5}\n{"step": 6, "tr'
    )
    (jobs[2].folder / "run").write_text(f"pretrain\n{run}\n")
    standings[2].state = "running"
    running = Running(jobs[2], jobs[2].read(), None, None, None, 0, started=time.monotonic() - 90)
    said = io.StringIO()
    console = Console(file=said, force_terminal=terminal, width=120, color_system=None)
    return Board(console), said, standings, SimpleNamespace(running={2: running})


def test_the_table_has_states_progress_best_and_time_left(tmp_path):
    board, said, standings, pool = board_of(tmp_path)
    with board.shown(standings, pool):
        shown = Console(file=io.StringIO(), width=120, record=True)
        shown.print(board.table())
    lines = shown.export_text().splitlines()
    assert lines[0] == "1 running, 1 waiting, 2 done; best 1.2500: ok=b; about 2 min left"
    assert [cell.strip() for cell in lines[4].strip("│").split("│")] == ["ok=c", "5/20", "3.500", "1.5"]
    assert "1 running, 1 waiting, 2 done" in said.getvalue()


def test_without_a_terminal_nothing_is_drawn_but_lines(tmp_path, capsys):
    board, said, standings, pool = board_of(tmp_path, terminal=False)
    with board.shown(standings, pool):
        board.say("ok=a: done")
        board.refresh()
    assert said.getvalue() == ""
    assert "ok=a: done" in capsys.readouterr().err
