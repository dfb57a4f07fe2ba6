"""A grid of checked jobs -> their standings: the ledger opened, and all jobs carried out, here or on a cluster."""

from collections.abc import Sequence

from llm.compare.at_end import page_at_end
from llm.config import PoolConfig, SlurmConfig, StageConfig
from llm.errors import LaunchError
from llm.sweep.board import Board
from llm.sweep.driver import Driver, Standing
from llm.sweep.finding import Finder
from llm.sweep.ledger import Job, labels, open_ledger, sweep_folder, varying
from llm.sweep.opening import opened

EXIT_CODES = {"config": 2, "data": 65, "diverged": 70}


def run_grid(
    jobs: Sequence[Sequence[str]],
    configs: Sequence[StageConfig],
    *,
    settings: PoolConfig | SlurmConfig,
    choice: str | None,
) -> list[Standing]:
    """Carry out the jobs, in their order as far as there is room.

    Raises:
        ConfigError: a setting of the launcher that cannot be, or a job that this machine can never run.
        StoppedError: a signal came; the same command goes on.
    """
    settings.check()
    folder = sweep_folder(configs, jobs, choice=choice)
    checked = [
        Job(
            number=number,
            overrides=list(job),
            config=config,
            label=label,
            folder=folder / "jobs" / f"{number:04d}",
            varying=own,
        )
        for number, (job, config, label, own) in enumerate(zip(jobs, configs, labels(jobs), varying(jobs), strict=True))
    ]
    with opened(settings, configs, folder, num_jobs=len(jobs), of=f"{len(jobs)} jobs") as pool:
        open_ledger(folder, checked)
        driver = Driver(checked, pool, settings, Board(), Finder())
        if isinstance(settings, SlurmConfig) and not settings.wait:
            return driver.submit()
        with page_at_end(folder):
            return driver.run()


def as_error(standing: Standing) -> LaunchError:
    """Why a job has no finished run, with the exit code that the job alone would end with."""
    ended = standing.ending
    if ended is None or standing.state == "stopped":
        return LaunchError("stopped before its end. Start the same command again to go on.", exit_code=75)
    return LaunchError(
        f"{ended.kind}: {ended.message} (see {standing.job.folder}/console.log)",
        exit_code=EXIT_CODES.get(ended.kind, 1),
    )
