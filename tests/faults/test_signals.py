"""SIGTERM, SIGINT and SIGUSR1 at random moments: saved at a step's end, exit code 75, and the same end afterwards."""

import json
import os
import pty
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from select import select
from threading import Event, Thread
from typing import Any

import pytest

from llm.trainer.checkpoint import folder_of
from tests.faults.child import Launch
from tests.faults.harness import (
    COURSE,
    STEPS,
    Moment,
    Running,
    Workspaces,
    assert_ends_the_same,
    draw_moment,
    faults_of_checkpoints,
    launch,
    leftovers,
    run_folder,
    said,
    strike_command,
)
from tests.patience import PATIENCE

Times = Callable[..., Any]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
TRAINING = {name: often for name, often in COURSE["gpt2"].items() if name != "model building"}


def assert_at_step_boundary(folder: Path, what: str) -> None:
    """Every checkpoint is good, of the step that its name says, and of no part of one."""
    assert faults_of_checkpoints(folder) == {}, what
    for path in run_folder(folder, "gpt2").glob("checkpoints/step-*"):
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        done = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
        assert (state["global_step"], done) == (int(path.name.split("-")[1]), state["global_step"]), what


def signalled(launched: Launch, moment: Moment, sent: signal.Signals) -> int:
    """The exit code of a run that a signal comes to, unless it ends before the moment."""
    running = Running(launched)
    if running.reaches(moment.name, moment.times):
        time.sleep(moment.seconds)
        running.send(sent)
    return running.exit_code()


def test_a_signal_at_any_moment_of_training_is_obeyed_at_the_steps_end(
    workspaces: Workspaces, tmp_path: Path, times: Times
) -> None:
    draw, signals, number = random.Random(11), times(few=2, storm=60), 0
    while signals > 0:
        number += 1
        folder, history, code = workspaces.fresh("gpt2", tmp_path / str(number)), [], 75
        while code and signals > 0:
            moment, sent = draw_moment(draw, TRAINING, within=0.02), draw.choice(SIGNALS)
            code = signalled(launch("gpt2", folder), moment, sent)
            history.append((sent.name, moment, code))
            what = f"run {number}: {history}\n{said(folder)[-1500:]}"
            assert code in (0, 75), what
            assert_at_step_boundary(folder, what)
            assert leftovers(folder) == [], what
            if code:
                endings = [f"error: stopped by {sent.name} after step "]
                if folder_of(run_folder(folder, "gpt2") / "checkpoints", STEPS).exists():
                    endings.append(f"error: stopped by {sent.name}. ")  # what was under way came after the last step
                assert said(folder).splitlines()[-1].startswith(tuple(endings)), what
                signals -= 1
        assert_ends_the_same("gpt2", folder, workspaces)
        shutil.rmtree(folder)


BEFORE_AND_AFTER = [
    ("gpt2", "model saving", signal.SIGTERM),
    ("tokenizer", "tokenizer training", signal.SIGINT),
    ("export", "card writing", signal.SIGUSR1),
]


@pytest.mark.parametrize(("command", "moment", "sent"), BEFORE_AND_AFTER)
def test_a_signal_before_or_after_training_ends_in_75_too(
    command: str, moment: str, sent: signal.Signals, workspaces: Workspaces, tmp_path: Path
) -> None:
    folder = workspaces.fresh(command, tmp_path / "w")
    code = signalled(launch(command, folder, pauses={moment: 0.3}), Moment(moment, 1, 0.1), sent)
    assert code == 75, said(folder)[-1500:]
    assert said(folder).splitlines()[-1].startswith(f"error: stopped by {sent.name}"), said(folder)[-1500:]
    assert_ends_the_same(command, folder, workspaces)


def test_a_ctrl_c_as_a_finished_command_ends_is_no_interruption(workspaces: Workspaces, tmp_path: Path) -> None:
    folder = workspaces.fresh("shards", tmp_path / "w")
    code = strike_command(launch("shards", folder), Moment("end", 1, 0.05), signal.SIGINT, awaited="shards done in")
    assert code in (0, 75), said(folder)[-1500:]  # 75 before the command has seen that its run is done
    assert_ends_the_same("shards", folder, workspaces)


def _show(terminal: int, closes: Event) -> None:
    while not closes.is_set():
        if select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 4096)
    os.close(terminal)


def test_a_terminal_that_closes_stops_the_run_at_a_steps_end(workspaces: Workspaces, tmp_path: Path) -> None:
    folder, closes = workspaces.fresh("gpt2", tmp_path / "w"), Event()
    ours, its = pty.openpty()
    shown = Thread(target=_show, args=(ours, closes), daemon=True)
    shown.start()
    running = Running(launch("gpt2", folder, console_name=os.ttyname(its)))
    assert running.reaches("micro-batch", 7)
    closes.set()
    shown.join()
    os.close(its)  # from here on the run cannot write to its terminal
    for _ in range(2):  # one comes from the shell, one from the kernel
        running.send(signal.SIGHUP)
        time.sleep(0.2)
    code = running.exit_code()
    record = json.loads((run_folder(folder, "gpt2") / "run.json").read_text(encoding="utf-8"))
    assert code == 75 and record["stopped"].startswith("stopped by SIGHUP after step "), (code, record)
    assert_at_step_boundary(folder, "after SIGHUP")
    assert_ends_the_same("gpt2", folder, workspaces)


def test_a_second_signal_ends_at_once_and_the_run_goes_on_all_the_same(workspaces: Workspaces, tmp_path: Path) -> None:
    folder = workspaces.fresh("gpt2", tmp_path / "w")
    running = Running(launch("gpt2", folder, pauses={"checkpoint": PATIENCE / 2}))
    assert running.reaches("checkpoint")
    for _ in range(2):
        time.sleep(1.0)  # else the second one comes before the first was taken, and both are one
        running.send(signal.SIGTERM)
    assert running.exit_code() == -signal.SIGTERM, said(folder)[-1500:]
    assert faults_of_checkpoints(folder) == {}
    assert_ends_the_same("gpt2", folder, workspaces)


def test_a_signal_while_the_command_loads_its_libraries_ends_in_75(workspaces: Workspaces, tmp_path: Path) -> None:
    folder = workspaces.fresh("gpt2", tmp_path / "w")
    moment = Moment("loading", 1, 0.3)
    code = strike_command(launch("gpt2", folder), moment, signal.SIGTERM, awaited="pretrain starts in")
    assert code == 75, said(folder)[-1500:]
    assert_ends_the_same("gpt2", folder, workspaces)
