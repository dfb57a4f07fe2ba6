"""A grid of checked jobs -> their standings: the ledger opened, the machine's shares counted, all jobs carried out."""

from collections.abc import Sequence

from llm.compare import page_at_end
from llm.config import PoolConfig, StageConfig
from llm.data import available_cores
from llm.errors import LaunchError
from llm.run import log, start_logging
from llm.sweep.board import Board
from llm.sweep.driver import Driver, Standing
from llm.sweep.finding import Finder
from llm.sweep.ledger import Job, labels, open_ledger, sweep_folder
from llm.sweep.pool import Pool
from llm.sweep.process import prepare_server
from llm.sweep.shares import Shares, free_memory, present_gpus

EXIT_CODES = {"config": 2, "data": 65, "diverged": 70}


def run_grid(
    jobs: Sequence[Sequence[str]], configs: Sequence[StageConfig], *, settings: PoolConfig, choice: str | None
) -> list[Standing]:
    """Carry out the jobs, in their order as far as there is room.

    Raises:
        ConfigError: a setting of the launcher that cannot be, or a job that this machine can never run.
        StoppedError: a signal came; the same command goes on.
    """
    settings.check()
    shares = Shares(settings, num_jobs=len(jobs), gpus=present_gpus(), cores=available_cores(), memory=free_memory())
    for config in configs:
        shares.check(config)
    prepare_server({config.stage for config in configs})
    folder = sweep_folder(configs, jobs, choice=choice)
    checked = [
        Job(number=number, overrides=list(job), config=config, label=label, folder=folder / "jobs" / f"{number:04d}")
        for number, (job, config, label) in enumerate(zip(jobs, configs, labels(jobs), strict=True))
    ]
    open_ledger(folder, checked)
    start_logging()
    log.info("%d jobs, %d at once; their ledger and what they say: %s", len(jobs), shares.slots, folder)
    with page_at_end(folder):
        return Driver(checked, Pool(settings, shares), settings, Board(), Finder()).run()


def as_error(standing: Standing) -> LaunchError:
    """Why a job has no finished run, with the exit code that the job alone would end with."""
    ended = standing.ending
    if ended is None or standing.state == "stopped":
        return LaunchError("stopped before its end. Start the same command again to go on.", exit_code=75)
    return LaunchError(
        f"{ended.kind}: {ended.message} (see {standing.job.folder}/console.log)",
        exit_code=EXIT_CODES.get(ended.kind, 1),
    )
