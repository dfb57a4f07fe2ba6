"""wandb leet outputs/wandb: the terminal dashboard that ships with wandb shows every run of the shared folder."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from tests.patience import PATIENCE
from tests.wandb_attempts import attempt
from tests.wandb_server import WandbServer

# What a terminal answers to those who ask what it is, where its cursor stands and which background it has.
ANSWERS = {b"\x1b[c": b"\x1b[?62;c", b"\x1b[6n": b"\x1b[1;1R", b"\x1b]11;?": b"\x1b]11;rgb:0000/0000/0000\x07"}


def shown(folder: Path, environment: dict[str, str], until: str, seconds: float = PATIENCE) -> str:
    """What leet writes on a terminal of 180 columns, without its colours, up to `until`."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 180, 0, 0))
    command = [sys.executable, "-m", "wandb", "leet", str(folder)]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    written, deadline = b"", time.monotonic() + seconds
    try:
        while until not in (text := re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode(errors="replace"))):
            assert time.monotonic() < deadline, text
            if select.select([ours], [], [], 0.2)[0]:
                part = os.read(ours, 65536)
                written += part
                for question, answer in ANSWERS.items():
                    if question in part:
                        os.write(ours, answer)
        return text
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with the dashboard, which is a process of its own
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_leet_lists_every_run_of_the_shared_folder_with_its_curves_over_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "pretrain" / "first-0123abcd"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("stage: pretrain\n", encoding="utf-8")
    with WandbServer() as server:
        for last in (20, 40):
            attempt(server, tmp_path / "outputs", 0, last, mode="offline")
            time.sleep(1.1)  # a segment is named by its second
    own = os.environ | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "TERM": "xterm-256color"}
    text = shown(tmp_path / "outputs" / "wandb", own, until="x: tokens")
    assert "[2 items]" in text
    assert text.count("offline-run-") >= 2
