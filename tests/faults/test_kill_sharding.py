"""stage=shards as a process of its own, killed with kill -9 at random moments: the result is as if nothing had been."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.korean import documents
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from pathlib import Path
import llm.data.documents as documents
from llm.config.data import DataConfig, DataKind
from llm.config.stages import ShardsStage
from llm.stage import run_stage
from tests.korean import preset

documents.FILE_BYTES = 8000
outputs, num_workers = Path(sys.argv[1]), int(sys.argv[2])
path = str(outputs.with_name("text.jsonl"))
data = DataConfig(name="text", kind=DataKind.text, path=path, held_out_share=0.1, num_workers=num_workers)
run_stage(ShardsStage(stage="shards", outputs=str(outputs), tokenizer=preset("char_bpe"), data=data))
"""


class Process:
    """A sharding process, in a session of its own."""

    def __init__(self, outputs: Path, num_workers: int) -> None:
        self._outputs = outputs
        command = [sys.executable, "-c", DRIVER, str(outputs), str(num_workers)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.popen = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def end(self) -> float:
        """Seconds from its first shard to its good end."""
        self.await_first_shard()
        begun = time.monotonic()
        said = self.popen.communicate(timeout=PATIENCE)[1]
        assert self.popen.returncode == 0, said
        self._all_are_gone()
        return time.monotonic() - begun

    def kill(self, *, seconds: float) -> bool:
        """Kill the parent alone, its workers not, so long after the first shard; whether it was still at it."""
        self.await_first_shard()
        time.sleep(seconds)
        self.popen.send_signal(signal.SIGKILL)
        said = self.popen.communicate(timeout=PATIENCE)[1]
        assert self.popen.returncode in (0, -signal.SIGKILL), said
        self._all_are_gone()
        return self.popen.returncode == -signal.SIGKILL

    def await_first_shard(self) -> None:
        until = time.monotonic() + PATIENCE
        while not any(self._outputs.glob("shards/*/shards/*.bin")) and self.popen.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.005)

    def _all_are_gone(self) -> None:
        """Every process of the session ends by itself."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                os.killpg(self.popen.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.02)
        os.killpg(self.popen.pid, signal.SIGKILL)
        pytest.fail("a worker outlived its parent")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """(a folder with text.jsonl and the outputs of an uninterrupted run, the seconds that its shards take)."""
    folder = tmp_path_factory.mktemp("whole")
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents(2000, seed=7)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Process(folder / "outputs", 1).end()  # which trains the tokenizer too
    shutil.rmtree(folder / "outputs" / "shards")
    return folder, Process(folder / "outputs", 1).end()


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "shards").iterdir()}


def is_as_whole(whole: Path, run: Path) -> bool:
    """Whether a run has the shards, the results and the digest of the uninterrupted one, and nothing else is left."""
    expected = whole / "outputs" / "shards" / run.name
    records = [json.loads((path / "run.json").read_text(encoding="utf-8")) for path in (expected, run)]
    return (
        contents(run) == contents(expected)
        and records[0]["digest"] == records[1]["digest"]
        and records[0]["results"] == records[1]["results"]
        and records[1]["status"] == "done"
        and {path.name for path in run.iterdir()} == {path.name for path in expected.iterdir()}
    )


def survive(whole: tuple[Path, float], outputs: Path, draw: random.Random) -> tuple[int, int, bool]:
    """Kill a run once or twice and then let it end.

    Gives (kills that came before its end, kills that left finished shards, whether the result is as whole).
    """
    folder, seconds = whole
    shutil.copytree(folder / "outputs" / "tokenizer", outputs / "tokenizer")
    shutil.copy(folder / "text.jsonl", outputs.parent / "text.jsonl")
    kills = halves = 0
    for _ in range(draw.choice([1, 1, 2])):
        kills += Process(outputs, draw.choice([1, 2])).kill(seconds=draw.uniform(0, seconds))
        halves += any(outputs.glob("shards/*/shards/train-*.json"))
    Process(outputs, draw.choice([1, 2])).end()
    (run,) = (outputs / "shards").iterdir()
    return kills, halves, is_as_whole(folder, run)


def survive_kills(whole: tuple[Path, float], folder: Path, *, least: int, seed: int) -> None:
    """Kill runs until `least` kills came in time; every run ends as if there had been none."""
    draw = random.Random(seed)
    kills = halves = good = number = 0
    while kills < least or not halves:
        came, half, same = survive(whole, folder / str(number) / "outputs", draw)
        kills, halves, good, number = kills + came, halves + half, good + same, number + 1
        if same:
            shutil.rmtree(folder / str(number - 1))
    print(
        f"{kills} kills in {number} runs, {halves} of them amid the shards; {good} runs ended as the uninterrupted one"
    )
    assert good == number


def test_sharding_that_was_killed_ends_as_if_it_had_not_been(
    whole: tuple[Path, float], tmp_path: Path, times: Callable[..., int]
) -> None:
    survive_kills(whole, tmp_path, least=times(few=2, storm=50), seed=1)
