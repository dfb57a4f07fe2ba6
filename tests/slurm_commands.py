"""Stand-ins for Slurm's commands, for tests of what is asked of them and made of their answers."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

# Says what its file holds, with the exit code that is in another, and keeps how it was called.
COMMAND = """#!/bin/sh
here=$(dirname "$0"); me=$(basename "$0")
for word in "$me" "$@"; do printf '%s\\n' "$word"; done >> "$here/asked"; echo "" >> "$here/asked"
[ -f "$here/$me.out" ] && cat "$here/$me.out"
[ -f "$here/$me.err" ] && cat "$here/$me.err" >&2
[ -f "$here/$me.code" ] && exit "$(cat "$here/$me.code")"
exit 0
"""


@dataclass
class Commands:
    """Stand-ins for Slurm's commands, the first on the PATH."""

    folder: Path

    def answer(self, name: str, said: str = "", *, error: str = "", code: int = 0) -> None:
        for ending, content in (("out", said), ("err", error), ("code", str(code))):
            (self.folder / f"{name}.{ending}").write_text(content, encoding="utf-8")

    def asked(self, name: str) -> list[list[str]]:
        """The arguments of each call of one of them, in order."""
        calls = (self.folder / "asked").read_text(encoding="utf-8") if (self.folder / "asked").exists() else ""
        words = [call.split("\n") for call in calls.removesuffix("\n\n").split("\n\n")]
        return [call[1:] for call in words if call[0] == name]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """All of them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol", "sinfo"):
        (folder / name).write_text(COMMAND, encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return Commands(folder)
