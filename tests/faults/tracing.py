"""A launch under strace: the file calls of one save, and a fault at any one of them."""

import random
import re
import shutil
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.child import Launch
from tests.faults.harness import Running

CHANGING = (
    *("openat", "write", "pwrite64", "ftruncate", "fallocate", "fsync", "fdatasync", "rename", "renameat", "renameat2"),
    *("mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "link", "linkat", "copy_file_range", "sendfile"),
)
READING = ("read", "pread64", "newfstatat", "fstat", "stat", "lstat", "statx", "getdents64", "lseek", "mmap", "close")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace (apt-get install strace)")
LINE = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\((?P<arguments>.*)")


@dataclass(frozen=True)
class Call:
    """The so-many-th call of its name since the moment at which the launch waited."""

    name: str
    number: int
    shown: str  # as strace shows it

    def injected(self, fault: str) -> str:
        """The fault (signal=SIGKILL, error=EIO, ...) at this call, as strace is told of it."""
        return f"inject={self.name}:{fault}:when={self.number}"


class Traced:
    """A launch that waits at a moment of its own while strace is put to it, and goes on under it."""

    def __init__(self, launch: Launch, log: Path, *, inject: str | None = None) -> None:
        assert launch.waits_at is not None
        self.running = Running(launch)
        assert self.running.reaches(launch.waits_at), self.running.failure(f"no {launch.waits_at}")
        calls = "trace=" + ",".join(f"?{name}" for name in (*CHANGING, *READING))
        command = ["strace", "-f", "-y", "-p", str(self.running.pid), "-o", str(log), "-e", calls]
        self._strace = subprocess.Popen(
            [*command, *(["-e", inject] if inject else [])], stderr=subprocess.PIPE, text=True, errors="replace"
        )
        assert self._strace.stderr is not None
        first = self._strace.stderr.readline()
        if "Operation not permitted" in first:
            self.running.send(signal.SIGKILL)
            self.exit_code()
            pytest.skip(f"strace may not trace a process here: {first.strip()}")
        assert "attached" in first, first
        self.running.go_on()

    def exit_code(self) -> int:
        """Wait for the end of both; the exit code of the launch."""
        code = self.running.exit_code()
        self._strace.communicate()
        return code


def file_calls(log: Path, *, until: str | None = None) -> list[Call]:
    """Every call on what lies under outputs/, up to the one that tells the harness of the moment `until`, or all."""
    numbers: Counter[str] = Counter()
    calls = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if until is not None and until in line:
            return calls
        if (match := LINE.match(line)) is None:
            continue
        numbers[match["name"]] += 1
        if "outputs/" in match["arguments"]:
            calls.append(Call(match["name"], numbers[match["name"]], line.partition(" ")[2].strip()))
    assert until is None, f"{until} did not come: {calls[-1]}"
    return calls


def some(calls: list[Call], number: int) -> list[Call]:
    """So many of the calls, always the same, in their order."""
    return sorted(random.Random(6).sample(calls, min(number, len(calls))), key=calls.index)
