"""A stand-in for train.py that does what its first override says, and a driver of such jobs."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from llm.config import PoolConfig, StageConfig
from llm.run import Run, load
from llm.sweep.board import Board
from llm.sweep.driver import Driver, Standing
from llm.sweep.ledger import Job, labels, open_ledger
from llm.sweep.pool import Pool
from llm.sweep.shares import Shares

# Each start of a job adds a line to starts.txt in its run's folder; `times` counts those before it.
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
do, _, name = sys.argv[1].partition("=")
job = Path(os.environ["TTUKTTAK_JOB"])
run = Path({outputs!r}) / "pretrain" / name
run.mkdir(parents=True, exist_ok=True)
starts = run / "starts.txt"
times = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open("a") as file:
    file.write(f"{{os.getpid()}} {{os.environ['OMP_NUM_THREADS']}} {{os.environ.get('CUDA_VISIBLE_DEVICES')}}\\n")
(job / "run").write_text(f"pretrain\\n{{run}}\\n")

def keep(**record):
    said = dict(stage="pretrain", name=name, key="0", status="running", seconds=1.0, **record)
    (run / "run.json").write_text(json.dumps(said))

keep()
print("says", name, flush=True)
if do == "hold":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (run / "holds").touch()
    time.sleep(60)
elif do == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif do == "kill_once" and not times:
    os.kill(os.getpid(), signal.SIGKILL)
elif do in ("raise", "raise_late"):
    while do == "raise_late" and not [*run.parent.glob("*/holds")]:
        time.sleep(0.02)
    raise RuntimeError("a bug")
elif do == "memory":
    raise MemoryError
elif do == "diverge":
    print("error: step 3: the loss is not finite", file=sys.stderr)
    sys.exit(70)
elif do == "data":
    print("error: text.txt:3: this is no text", file=sys.stderr)
    sys.exit(65)
elif do == "mute":
    sys.exit(0)
elif do == "meet":  # two other jobs, where one driver has room for two
    while len(list(run.parent.glob("*/starts.txt"))) < 3:
        time.sleep(0.02)
time.sleep(float(do) if do[0].isdigit() else 0)
keep(objective=float(len(name)))
record = json.loads((run / "run.json").read_text())
(run / "run.json").write_text(json.dumps(record | dict(status="done")))
"""


class FinderOfStandIns:
    """Finds the finished runs of the stand-in by their names."""

    def __init__(self) -> None:
        self.said: dict[str, list[str]] = {}

    def find(self, config: StageConfig) -> Run | None:
        folder = Path(config.outputs) / "pretrain" / str(config.name)
        if not (folder / "run.json").exists() or not (run := load(folder)).is_done:
            return None
        self.said[str(folder)] = [f"reused {folder}"]
        return run


@dataclass
class Sweep:
    """Jobs of the stand-in in one ledger."""

    outputs: Path
    overrides: list[str]
    settings: PoolConfig = field(default_factory=PoolConfig)
    cores: int = 2

    def jobs(self) -> list[Job]:
        said = [[override] for override in self.overrides]
        folder = self.outputs / "sweeps" / "test"
        made = []
        for number, (job, label) in enumerate(zip(said, labels(said), strict=True)):
            config = StageConfig(stage="pretrain", outputs=str(self.outputs), name=job[0].partition("=")[2])
            place = folder / "jobs" / f"{number:04d}"
            made.append(Job(number=number, overrides=job, config=config, label=label, folder=place))
        open_ledger(folder, made)
        return made

    def driver(self) -> Driver:
        jobs = self.jobs()
        shares = Shares(self.settings, num_jobs=len(jobs), gpus=[], cores=self.cores, memory=64_000_000_000)
        return Driver(jobs, Pool(self.settings, shares), self.settings, Board(), FinderOfStandIns())

    def run(self) -> dict[str, Standing]:
        """The standing of each job by its run's name."""
        return {str(each.job.config.name): each for each in self.driver().run()}

    def starts(self) -> dict[str, int]:
        """How often each job's process has started."""
        return {
            path.parent.name: len(path.read_text().splitlines()) for path in self.outputs.glob("pretrain/*/starts.txt")
        }

    def ledger(self) -> dict[str, dict]:
        found = [json.loads(path.read_text()) for path in sorted(self.outputs.glob("sweeps/test/jobs/*/job.json"))]
        return {record["overrides"][0].partition("=")[2]: record for record in found}
