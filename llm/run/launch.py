"""A run on several devices: one process for each, with torch's own launcher's environment; signals; what each tells.

Lightning's launcher would start the other ranks with this process's command line: in a multirun that is the whole sweep
again. torch.distributed.run makes every rank's exit code 1, and kills after 30 seconds what is still saving. A run that
torch.distributed.run or srun started works all the same.
"""

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NoReturn

from llm.credentials import without_secrets
from llm.environment import ANOTHER_LAUNCH, JOB_FOLDER, is_launched, is_on_slurm, job_folder, process_rank, variables
from llm.errors import LaunchError, StoppedError, is_out_of_memory, named_line, say_error
from llm.run.console import log
from llm.run.files import write_json
from llm.run.runs import Run, load

TRAIN = Path(__file__).parents[2] / "train.py"
LOOPBACK = "127.0.0.1"
JOB, RESULT = "job.json", "result.json"  # in the folder of TTUKTTAK_JOB, of a sweep or launch_ranks
GRACE_SECONDS = 20  # for the other ranks once one has ended: they end too, or wait for ever for one that is gone
LOOK_SECONDS = 0.1
LOST = re.compile(  # gloo's words, and NCCL's
    r"gloo.*(Connection (reset|closed)|Broken pipe|Socket closed)|remote process exited|ncclRemoteError", re.S
)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def make_by_ranks(overrides: list[str], *, devices: int) -> Run:
    """The finished run that `devices` processes of train.py make of the overrides of one job; see launch_ranks."""
    with TemporaryDirectory(prefix="ttukttak-") as temporary:
        folder = job_folder() or Path(temporary)
        launch_ranks(overrides, devices=devices, folder=folder)
        told = read_result(folder)
        assert told and told.run, "rank zero has made a run, and told of it"
        return load(Path(told.run))


def launch_ranks(overrides: list[str], *, devices: int, folder: Path) -> None:
    """Run train.py with the overrides of one job as `devices` processes, and wait for them.

    A signal to this process is passed on to each of them; none of them outlives it. In `folder` they leave what they
    tell this process, and the sweep that it may be a job of; one may ask there that all be started again.

    Raises:
        StoppedError: they were stopped, and can go on.
        LaunchError: one failed, and said why on the terminal; the exit code is that of the first.
    """
    shared = _shared_environment(devices) | {JOB_FOLDER: str(folder)}
    (folder / ANOTHER_LAUNCH).unlink(missing_ok=True)
    for times in count():
        again = {"TORCHELASTIC_RESTART_COUNT": str(times), "MASTER_PORT": str(_free_port())}
        failed, is_stopped = _launch_once(overrides, shared | again, devices=devices)
        if is_stopped or not (folder / ANOTHER_LAUNCH).exists():
            break
        (folder / ANOTHER_LAUNCH).unlink()
        log.info("starting the %d processes again", devices)
    if failed:
        _raise_for(*failed)


@contextmanager
def in_group() -> Iterator[None]:
    """Say in one line that another process of the group is gone; at the end leave the group, on a CPU.

    Its threads run on, and now and then one of them aborts a process that ends without it, its work all done. Of GPUs
    all would have to leave together, which a process that failed cannot wait for.

    Raises:
        LaunchError: another process ended in the midst of what all do together; it, or launch_ranks, says why.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_launched() or not LOST.search(str(error)):
            raise
        raise LaunchError(
            f"rank {process_rank()}: another process of this launch ended, and it cannot go on without that."
        ) from error
    finally:
        group: Any = sys.modules.get("torch.distributed")
        if group and group.is_available() and group.is_initialized() and group.get_backend() == "gloo":
            group.destroy_process_group()


def _launch_once(overrides: list[str], shared: dict[str, str], *, devices: int) -> tuple[tuple[int, int] | None, bool]:
    """((the rank that failed first, its exit code), or None; whether a signal came)."""
    command = [sys.executable, str(TRAIN), *overrides, "hydra.mode=RUN"]
    signals: list[str] = []

    def pass_on(name: str) -> None:
        signals.append(name)
        for rank in ranks:
            rank.send_signal(signal.Signals[name])

    ranks = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,  # a Ctrl-C in the terminal comes to them through this process, once
            preexec_fn=_end_with_parent,
        )
        for rank in range(devices)
    ]
    try:
        with on_signal(pass_on):
            failed = _wait(ranks)
    finally:
        for rank in ranks:
            rank.kill()  # does nothing to one that has ended
            rank.wait()
    return failed, bool(signals)


def needs_launch(devices: int) -> bool:
    """Whether a run on so many devices has yet to be given its processes."""
    return devices > 1 and not is_launched()


def _shared_environment(devices: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // devices)
    return {"OMP_NUM_THREADS": str(threads), **variables()} | {
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": LOOPBACK,
        "TORCHELASTIC_RUN_ID": uuid.uuid4().hex,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """In a new process: have Linux kill it when its parent dies, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(ranks: "list[subprocess.Popen[bytes]]") -> tuple[int, int] | None:
    """(the rank that failed first, its exit code), once all have ended or their grace is over; None if none failed."""
    failed, deadline = None, float("inf")
    while True:
        statuses = [rank.poll() for rank in ranks]
        if failed is None and any(statuses):
            # Of those that a look finds ended: who was killed; who ends with 1 may only have lost another
            ended = [(rank, status) for rank, status in enumerate(statuses) if status]
            failed = min(ended, key=lambda each: (each[1] > 0, each[1] == 1))
            deadline = time.monotonic() + GRACE_SECONDS
        if None not in statuses or time.monotonic() >= deadline:
            return failed
        time.sleep(LOOK_SECONDS)


def _raise_for(rank: int, status: int) -> NoReturn:
    if status == StoppedError.exit_code:
        raise StoppedError(f"rank {rank} was stopped. Start the same command again to go on.")
    if status < 0:
        raise LaunchError(
            f"rank {rank} was killed by {signal.Signals(-status).name}, perhaps for want of memory. "
            "Start the same command again to go on from the last checkpoint.",
            kind="killed",
        )
    raise LaunchError(f"rank {rank} ended first, with exit code {status}; it says why above.", exit_code=status)


# SIGTERM, SIGINT, SIGUSR1 and SIGHUP -> an orderly stop; a second one ends the process at once, as without us. A SIGHUP
# that is ignored, as under nohup, stays so. Slurm sends several, to every process, and a SIGKILL when its patience
# ends: there a second one changes nothing.


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@contextmanager
def on_signal(action: Callable[[str], None], *, is_last: bool = False) -> Iterator[None]:
    """Call `action` with the name of the first signal that comes while the block runs.

    `is_last` says that it is all that the process does: what comes once it has ended well has nothing left to stop.
    """

    def catch(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, _second(each))
        action(signal.Signals(number).name)

    wanted = [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in wanted}
    for number in wanted:
        signal.signal(number, catch)
    has_ended_well = False
    try:
        yield
        has_ended_well = True
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if is_last and has_ended_well else handler)


@contextmanager
def stop_on_signal(*, is_last: bool = False) -> Iterator[None]:
    """Have a signal end the block, where no step is under way: everything is written whole or not at all.

    `is_last` is that of on_signal.

    Raises:
        StoppedError: one came.
    """
    came: list[str] = []

    def stop(name: str) -> None:
        came.append(name)
        if _is_importing():  # what a module raises while it loads may be swallowed, and leave half of it behind
            say_error(_stopped_by(name))
            os._exit(StoppedError.exit_code)
        raise StoppedError(_stopped_by(name))

    with on_signal(stop, is_last=is_last):
        try:
            yield
        except StoppedError:
            raise
        except BaseException as error:
            if came:  # a library made something else of it
                raise StoppedError(_stopped_by(came[0])) from error
            raise


def _second(number: signal.Signals) -> signal.Handlers:
    """Of a terminal that closes, the shell and the kernel each send a SIGHUP."""
    is_slurms = is_on_slurm() and number != signal.SIGINT
    return signal.SIG_IGN if is_slurms or number == signal.SIGHUP else signal.SIG_DFL


def _stopped_by(name: str) -> str:
    return f"stopped by {name}. Start the same command again to go on."


def _is_importing() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


# What processes tell who started them


@dataclass(frozen=True)
class Result:
    """What a job says of itself: first which run it is at, and in the end what became of it."""

    kind: str | None = None  # done, stopped, busy, or a failure: killed, out_of_memory, diverged, config, data, failed
    message: str = ""
    stage: str | None = None
    run: str | None = None  # its folder

    @property
    def is_failure(self) -> bool:
        return self.kind not in ("done", "stopped", "busy")


def announce(stage: str, folder: Path) -> None:
    """Tell who started this process which run it is at."""
    if (job := job_folder()) and process_rank() == 0:
        write_result(job, Result(stage=stage, run=str(folder)))


@contextmanager
def reporting() -> Iterator[Callable[[Run], None]]:
    """Tell who started this process how the block ends; the function takes the run that is done."""

    def done(run: Run) -> None:
        if (job := job_folder()) and process_rank() == 0:
            write_result(job, Result("done", stage=run.stage, run=str(run.path)))

    try:
        yield done
    except BaseException as error:
        if job := job_folder():
            _tell_error(job, error)
        raise


def _tell_error(job: Path, error: BaseException) -> None:
    """Of several processes the first that failed by itself is right, or rank zero: others may only have lost it."""
    told = read_result(job) or Result()
    is_of_another = isinstance(error, LaunchError) or process_rank() > 0
    if (isinstance(error, LaunchError) and is_launched()) or (is_of_another and told.kind):
        return
    kind = getattr(error, "kind", None) or ("out_of_memory" if is_out_of_memory(error) else "failed")
    is_bug = not (hasattr(error, "exit_code") and str(error))
    message = named_line(error) if is_bug else " ".join(str(error).split())  # of what is no bug, as the user is told
    write_result(job, replace(told, kind=kind, message=without_secrets(message)))


def read_result(job: Path) -> Result | None:
    """What a job has said; None before it has."""
    try:
        return Result(**json.loads((job / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_result(job: Path, result: Result) -> None:
    write_json(job / RESULT, asdict(result))


def sweep_job() -> tuple[str | None, dict[str, str]]:
    """(the sweep that this process is a job of, the overrides that tell it from the others); outside of one nothing."""
    if not (folder := job_folder()) or not (folder / JOB).exists():
        return None, {}
    overrides = json.loads((folder / JOB).read_text(encoding="utf-8")).get("varying", [])
    pairs = (override.lstrip("+").partition("=") for override in overrides)
    return folder.parents[1].name, {key: value for key, _, value in pairs if key != "name"}
