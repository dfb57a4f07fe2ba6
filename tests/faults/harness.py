"""Launches that are killed, signalled and started again, and what is left of their runs in the end."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm.run.files import sha256_of
from llm.run.record import read_metrics
from llm.trainer.checkpoint import find_fault
from tests.faults.child import TRAIN, Launch, main
from tests.korean import documents
from tests.patience import PATIENCE

MEASURED_SPEED = "encode_megabytes_per_second"
GROWING = ("samples.jsonl", "validation.jsonl")  # files that a training adds to
TIMED = ("seconds", "throughput/", "memory/")  # how what no two runs share begins

TEXT = ["data=text", "data.path=text.jsonl", "data.held_out_share=0.2"]
TOKENIZER = ["tokenizer.initial_alphabet=none", "tokenizer.vocab_size=500"]
MODEL = ["model.num_layers=1", "model.num_heads=2", "model.hidden_size=16", "model.dropout=0.2"]
STEPS = 20
TRAINING = [
    *("data.sequence_length=64", "data.batch_size=4", "trainer.micro_batch_size=2", f"trainer.max_steps={STEPS}"),
    *("optimizer.learning_rate=1e-2", "optimizer.warmup_steps=2"),
    *("trainer.log_every_steps=1", "trainer.validate_every_steps=4", "trainer.checkpoint_every_steps=3"),
    *("trainer.sample_tokens=3", "logger=local", "outputs=outputs", "seed=7", "trainer.precision=fp32"),
]
COMMANDS = {
    "tokenizer": ["stage=tokenizer", *TEXT, *TOKENIZER, "logger=local", "outputs=outputs"],
    "shards": ["stage=shards", *TEXT, *TOKENIZER, "logger=local", "outputs=outputs"],
    "gpt2": ["stage=pretrain", *TEXT, *TOKENIZER, "model=gpt2_tiny", *MODEL, *TRAINING, "name=base"],
    "llama": ["stage=pretrain", *TEXT, *TOKENIZER, "model=llama_tiny", *MODEL, *TRAINING],
    "lora": [
        *("stage=finetune", "base=base", "data=conversations", "data.path=chats.jsonl", "data.held_out_share=0.2"),
        *("lora.rank=2", "lora.dropout=0.2", *TRAINING),
    ],
}
COMMANDS["adapt"] = [
    *("stage=pretrain", *TEXT, "model=pretrained", "model.path=base", "tokenizer=extend", "tokenizer.path=base"),
    *("tokenizer.new_tokens=50", "model.trainable=lora", "lora.rank=2", "lora.dropout=0.2", *TRAINING, "name=adapted"),
    "optimizer.embedding_learning_rate=1e-3",
]
COMMANDS["export"] = ["stage=export", "run=base", "outputs=outputs"]
COMMANDS["no dropout"] = [*COMMANDS["gpt2"], "model.dropout=0.0"]  # whose draws differ with the number of ranks
BEFORE = {  # command -> the one that comes before it, whose workspace it goes on in
    "shards": "tokenizer",
    "gpt2": "shards",
    "llama": "shards",
    "no dropout": "shards",
    "lora": "gpt2",
    "adapt": "gpt2",
    "export": "gpt2",
}

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.faults.child"])


class Running:
    """A launch whose moments can be waited for."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._told, telling = _forks.Pipe()
        self._process = _forks.Process(target=main, args=(launch, telling))
        self._process.start()
        telling.close()  # ours: the end of the process is then the end of the pipe

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def reaches(self, moment: str, times: int = 1) -> bool:
        """Wait until a moment came so many times; False if the process ended before."""
        deadline = time.monotonic() + PATIENCE
        with suppress(EOFError):
            while times:
                assert self._told.poll(max(0.0, deadline - time.monotonic())), self.failure(f"no {moment}")
                times -= self._told.recv() == moment
            return True
        return False

    def go_on(self) -> None:
        """Let it pass the moment that it waits at."""
        self._told.send("go on")

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def exit_code(self) -> int:
        """Wait for the end: the exit code, or minus the number of the signal that ended it."""
        self._process.join(PATIENCE)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(self.failure("did not end"))
        self._told.close()
        self._process.close()
        return code

    def failure(self, what: str) -> str:
        """What to say of a launch that did not do as it should."""
        return f"{what}: {' '.join(self._launch.overrides)}\n{said(self._launch.folder)[-3000:]}"


def said(folder: Path) -> str:
    """What the launches in a folder said so far."""
    console = folder / "console.txt"
    return console.read_text(encoding="utf-8") if console.exists() else ""


def is_told_in_one_line(folder: Path, code: int) -> bool:
    """Whether a failure of input or output ended as it should: exit code 74, one line on stderr, no traceback."""
    lines = said(folder).splitlines()
    return code == 74 and lines[-1:] == [line for line in lines if line.startswith(("error: ", "Traceback"))]


def run(command: str, folder: Path, **settings: Any) -> int:
    """The exit code of a launch that nothing befalls."""
    return Running(launch(command, folder, **settings)).exit_code()


def launch(command: str, folder: Path, *overrides: str, **settings: Any) -> Launch:
    """A launch of one of COMMANDS in a workspace."""
    return Launch(overrides=[*COMMANDS[command], *overrides], folder=folder, **settings)


# Moments


@dataclass(frozen=True)
class Moment:
    """So many seconds after something began for the so-many-th time in a launch."""

    name: str
    times: int
    seconds: float


# What a launch of each command goes through, and about how often.
COURSE: dict[str, dict[str, int]] = {
    "tokenizer": {"tokenizer training": 1, "tokenizer saving": 1},
    "gpt2": {"model building": 1, "micro-batch": 2 * STEPS, "validation": 5, "sampling": 10, "checkpoint": 5},
    "lora": {"base loading": 1, "micro-batch": 2 * STEPS, "validation": 5, "sampling": 15, "checkpoint": 5},
}
COURSE["llama"] = COURSE["adapt"] = COURSE["gpt2"]


def draw_moment(draw: random.Random, course: dict[str, int], *, within: float) -> Moment:
    """Any moment of a course, the more often it comes the likelier; a resumed launch may not have that many left."""
    name = draw.choices([*course], [*course.values()])[0]
    return Moment(name, draw.randint(1, max(1, course[name] // 2)), draw.uniform(0, within))


def strike_fork(launch: Launch, moment: Moment, number: signal.Signals = signal.SIGKILL) -> int:
    """Start a forked launch, send the signal at the moment, and wait for the end; the exit code."""
    running = Running(launch)
    if running.reaches(moment.name, moment.times):
        time.sleep(moment.seconds)
        running.send(number)
    return running.exit_code()


def strike_command(
    launch: Launch, moment: Moment, number: signal.Signals = signal.SIGKILL, *, awaited: str = "MFU is measured"
) -> int:
    """The same for a process of its own, as a shell starts it: so long after it said what is awaited, or started."""
    earlier = said(launch.folder).count(awaited) if awaited else -1
    arguments = [sys.executable, str(TRAIN), *launch.overrides]
    environment = (
        os.environ | {"OMP_NUM_THREADS": "1"} | launch.environment
    )  # as the forks have: more would sum in another order
    with launch.console.open("a") as console:
        process = subprocess.Popen(
            arguments,
            cwd=launch.folder,
            env=environment,
            stdout=console,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # which the tests may have been told to ignore
        )
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and said(launch.folder).count(awaited) == earlier:
        assert time.monotonic() < deadline, said(launch.folder)
        time.sleep(0.005)
    time.sleep(moment.seconds)
    process.send_signal(number)  # which does nothing to one that has ended
    return process.wait(PATIENCE)


def kill_again_and_again(
    command: str,
    workspaces: "Workspaces",
    folder: Path,
    *,
    kills: int,
    seed: int,
    course: dict[str, int] | None = None,
    within: float = 0.03,
    strike: Callable[[Launch, Moment], int] = strike_fork,
) -> None:
    """Kill launches of a command until so many were killed; each run ends as the uninterrupted one did.

    A run is started again until it ends, and then a new one is begun; what each must hold is asserted on the way:
    no checkpoint is damaged, and what bears its final name is complete.
    """
    draw, number = random.Random(seed), 0
    while kills:
        number += 1
        workspace = workspaces.fresh(command, folder / str(number))
        history: list[tuple[Moment, int]] = []
        code = -signal.SIGKILL
        while code and kills:
            moment = draw_moment(draw, course or COURSE[command], within=within)
            code = strike(launch(command, workspace), moment)
            history.append((moment, code))
            kills -= code == -signal.SIGKILL
            what = f"seed {seed}, run {number}: {history}\n{said(workspace)[-1500:]}"
            assert code in (0, -signal.SIGKILL), what
            assert faults_of_checkpoints(workspace) == {}, what
            assert unfinished(workspace, command, workspaces) == [], what
        assert_ends_the_same(command, workspace, workspaces)  # of a run that has ended, as it was
        shutil.rmtree(workspace)


# What is left


def run_folder(folder: Path, command: str) -> Path:
    """The folder of the one run that a command makes in a workspace."""
    stage = COMMANDS[command][0].removeprefix("stage=")
    name = next((word.removeprefix("name=") for word in COMMANDS[command] if word.startswith("name=")), "")
    (found,) = (folder / "outputs" / stage).glob(f"{name}*")
    return found


def remains(run: Path) -> dict[str, Any]:
    """All that a finished run holds and that two runs of one command must share, to the last bit.

    Times differ; so do a checkpoint's files that count bytes of them, and which checkpoints there were before the last.
    """
    found: dict[str, Any] = {}
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = path.relative_to(run)
        if path.name not in (".lock", ".owner.json", "log.txt", "config.yaml") and name.parts[0] != "checkpoints":
            found[str(name)] = sha256_of(path)
    found["run.json"] = _untimed_record(run)
    if (run / "report.json").exists():
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        found["report.json"] = {key: value for key, value in report.items() if key != MEASURED_SPEED}
    if checkpoints:
        found["metrics.jsonl"] = [
            {key: value for key, value in record.items() if not key.startswith(TIMED)}
            for record in read_metrics(run / "metrics.jsonl")
        ]
        found["last checkpoint"] = (checkpoints[-1].name, sha256_of(checkpoints[-1] / "tensors.safetensors"))
    return found


def _untimed_record(run: Path) -> dict[str, Any]:
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    for name in ("tokens_per_second_median", MEASURED_SPEED):
        record["results"].pop(name, None)
    (record["notes"] or {}).pop("peak_memory_bytes", None)
    return {key: record[key] for key in ("status", "key", "identity", "results", "digest", "notes", "objective")}


def faults_of_checkpoints(folder: Path) -> dict[str, str]:
    """What is wrong with each checkpoint under its final name, in a whole workspace."""
    paths = (path for path in folder.rglob("checkpoints/step-*") if path.is_dir())
    return {str(path.relative_to(folder)): fault for path in paths if (fault := find_fault(path))}


def unfinished(folder: Path, command: str, workspaces: "Workspaces") -> list[str]:
    """What bears its final name, or is missing in a folder that does, and is not to the last byte what it is to be."""
    run, whole = run_folder(folder, command), workspaces.remains_of(command)
    made = {name: content for name, content in whole.items() if isinstance(content, str) and name not in GROWING}
    there = [name for name in made if (run / Path(name).parts[0]).exists()]
    return [name for name in there if not (run / name).exists() or sha256_of(run / name) != made[name]]


def leftovers(folder: Path) -> list[str]:
    """What processes that died left, and what was set aside as damaged."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith((".tmp-", "bad-"))]


def assert_ends_the_same(command: str, folder: Path, workspaces: "Workspaces") -> None:
    """Started again, now that the fault is gone, the run ends as one that nothing befell."""
    assert run(command, folder) == 0, said(folder)[-1500:]
    assert leftovers(folder) == [], said(folder)[-1500:]
    assert remains(run_folder(folder, command)) == workspaces.remains_of(command), said(folder)[-1500:]


# Workspaces


class Workspaces:
    """Folders in which a command can be typed, all that it needs made before, and what is left where nothing befell."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._remains: dict[str, dict[str, Any]] = {}

    def fresh(self, command: str, folder: Path) -> Path:
        """A new folder `folder` in which everything is there for the command, and nothing of its run."""
        shutil.copytree(self._before(command), folder)
        return folder

    def remains_of(self, command: str) -> dict[str, Any]:
        """What an uninterrupted run leaves."""
        self.after(command)
        return self._remains[command]

    def after(self, command: str) -> Path:
        """A folder, to be read only, in which the command was run without a fault."""
        folder = self._folder / f"after-{command}"
        if not folder.exists():
            self.fresh(command, folder)
            running = Running(launch(command, folder))
            assert running.exit_code() == 0, said(folder)
            assert (faults_of_checkpoints(folder), leftovers(folder)) == ({}, [])
            self._remains[command] = remains(run_folder(folder, command))
        return folder

    def _before(self, command: str) -> Path:
        if command in BEFORE:
            return self.after(BEFORE[command])
        folder = self._folder / "texts"
        if not folder.exists():
            folder.mkdir()
            texts = [{"text": text} for text in documents(30)]
            (folder / "text.jsonl").write_text(_json_lines(texts), encoding="utf-8")
            chats = [{"question": f"{n}", "answer": f"학교에서 책을 {n % 7}"} for n in range(40)]
            (folder / "chats.jsonl").write_text(_json_lines(chats), encoding="utf-8")
        return folder


def _json_lines(records: Sequence[dict[str, str]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
