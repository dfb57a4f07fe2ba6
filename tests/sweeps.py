"""A stand-in for train.py that does what its first override says, and a driver of such jobs."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from llm.config.stages import StageConfig
from llm.config.sweeping import PoolConfig
from llm.run.runs import Run, load
from llm.sweep.driver import Driver, Grid
from llm.sweep.jobs import Job, jobs_of_grid, write_sweep
from llm.sweep.pool import Pool, prepare_server
from llm.sweep.shares import Shares

prepare_server([])

# Each start of a job adds a line to starts.txt in its run's folder; `times` counts those before it. The run of a point
# (x=..., n=...) is worth n + x, and may write the curve of a training, from where an earlier start of it ended.
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
do, _, name = sys.argv[1].partition("=")
point = dict(word.split("=") for word in sys.argv[1:] if word[:2] in ("x=", "n="))
x, n = float(point.get("x", 0)), int(point.get("n", 0))
if point:
    do, name = "point", f"{{point.get('x')}}-{{n}}"
job = Path(os.environ["TTUKTTAK_JOB"])
run = Path({outputs!r}) / "pretrain" / name
run.mkdir(parents=True, exist_ok=True)
starts = run / "starts.txt"
times = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open("a") as file:
    file.write(f"{{os.getpid()}} {{os.environ['OMP_NUM_THREADS']}}\\n")

def tell(kind=None, message="", code=None):
    said = dict(kind=kind, message=message, stage="pretrain", run=str(run))
    (job / "result.json").write_text(json.dumps(said))
    if code:
        sys.exit(code)

def keep(status="running", **record):
    said = dict(stage="pretrain", name=name, key="0", status=status, seconds=1.0, **record)
    (run / "new.json").write_text(json.dumps(said))
    (run / "new.json").rename(run / "run.json")

tell()
keep()
while len(list(run.parent.glob("*/starts.txt"))) < int(os.environ.get("MEET", 0)):  # more than a driver has room for
    time.sleep(0.02)
print("says", name, flush=True)
if do == "hold" and not (os.environ.get("HOLD") == "never" or (os.environ.get("HOLD") == "once" and times)):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (run / "holds").write_text(str(os.getpid()))
    time.sleep(60)
elif do == "kill" or (do == "kill_once" and not times):
    os.kill(os.getpid(), signal.SIGKILL)
elif do == "raise" or os.environ.get("FAIL") == str(n):
    tell("failed", "RuntimeError: a bug", 1)
elif do == "memory":
    tell("out_of_memory", "MemoryError", 1)
elif do == "diverge":
    tell("diverged", "step 3: the loss is not finite", 70)
elif do == "data":
    tell("data", "text.txt:3: this is no text", 65)
elif do == "busy_once" and not times:
    tell("busy", "another process makes it", 2)
elif do == "mute":
    sys.exit(0)
elif do == "point" and os.environ.get("CURVE"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    metrics = run / "metrics.jsonl"
    seen = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    for step in range(seen + 1, 10):
        time.sleep(0.1)
        with metrics.open("a") as file:
            file.write(json.dumps({{"step": step, "val/loss": n + 1 / step}}) + "\\n")
results = json.loads(os.environ.get("RESULTS", "{{}}")).get(str(n)) or {{"val/loss": n + x, "tokens": x}}
keep("done", objective=float(len(name)), results=results)
"""


def find_stand_in(config: StageConfig) -> Run | None:
    """The finished run of the stand-in by its name."""
    folder = Path(config.outputs) / "pretrain" / str(config.name)
    run = load(folder) if (folder / "run.json").exists() else None
    return run if run and run.is_done else None


@dataclass
class Sweep:
    """Jobs of the stand-in in one ledger."""

    outputs: Path
    overrides: list[str]
    settings: PoolConfig = field(default_factory=PoolConfig)

    def jobs(self) -> list[Job]:
        said = [[override] for override in self.overrides]
        names = [override.partition("=")[2] for override in self.overrides]
        configs = [StageConfig(stage="pretrain", outputs=str(self.outputs), name=name) for name in names]
        _, made = jobs_of_grid(said, configs, choice=None)
        folder = self.outputs / "sweeps" / "test"
        for job in made:
            job.folder = folder / "jobs" / job.folder.name
        write_sweep(folder, made)
        return made

    def driver(self, find: Callable[[StageConfig], Run | None] = find_stand_in) -> Driver:
        jobs = self.jobs()
        shares = Shares(self.settings, num_jobs=len(jobs), gpus=[], cores=2, memory=64_000_000_000)
        pool = Pool(self.settings, shares)
        return Driver(Grid(jobs), pool, self.settings.retries, find)

    def run(self) -> dict[str, Job]:
        """Each job by its run's name."""
        return {str(job.config.name): job for job in self.driver().run()}

    def starts(self) -> dict[str, int]:
        """How often each job's process has started."""
        return {
            path.parent.name: len(path.read_text().splitlines()) for path in self.outputs.glob("pretrain/*/starts.txt")
        }

    def ledger(self) -> dict[str, dict]:
        found = [json.loads(path.read_text()) for path in sorted(self.outputs.glob("sweeps/test/jobs/*/job.json"))]
        return {record["overrides"][0].partition("=")[2]: record for record in found}
