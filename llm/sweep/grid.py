"""A grid of checked jobs -> how they stand in the end: the ledger opened, and all jobs carried out."""

from collections.abc import Sequence

from llm.compare.show import page_at_end
from llm.config.slurm import SlurmConfig
from llm.config.stages import StageConfig
from llm.config.sweeping import PoolConfig
from llm.errors import LaunchError
from llm.sweep.board import Board
from llm.sweep.driver import Driver, opened
from llm.sweep.finding import Finder
from llm.sweep.jobs import KINDS, Job, jobs_of_grid, open_ledger


class Grid:
    """Jobs that are all known from the beginning."""

    def __init__(self, jobs: Sequence[Job], board: Board) -> None:
        self._left, self._board = [*jobs], board
        self._best: tuple[float, str] | None = None

    def more(self) -> list[Job]:
        left, self._left = self._left, []
        return left

    def is_over(self) -> bool:
        return not self._left

    def keeps(self, job: Job, *, is_taken: bool) -> bool:
        return True

    def outdone(self) -> list[Job]:
        return []

    def settled(self, job: Job) -> None:
        """Say what a job came to: its stage's objective, of which the lowest is the best."""
        if job.run is None:
            return
        objective = job.run.objective
        if job.result is not None:  # it was not done before
            self._board.say(f"{job.label}: done" + ("" if objective is None else f", {objective:.4f}"))
        if objective is not None and (self._best is None or objective < self._best[0]):
            self._best = objective, job.label

    def to_come(self) -> int:
        return 0

    def best(self) -> str | None:
        return f"{self._best[0]:.4f}: {self._best[1]}" if self._best else None


def run_grid(
    jobs: Sequence[Sequence[str]],
    configs: Sequence[StageConfig],
    *,
    settings: PoolConfig | SlurmConfig,
    choice: str | None,
) -> list[Job]:
    """Carry out the jobs, in their order as far as there is room.

    Raises:
        ConfigError: a setting of the launcher that cannot be, or a job that this machine can never run.
        StoppedError: a signal came; the same command goes on.
    """
    settings.check()
    folder, checked = jobs_of_grid(jobs, configs, choice=choice)
    with opened(settings, configs, folder, num_jobs=len(jobs), of=f"{len(jobs)} jobs") as backend:
        open_ledger(folder, checked)
        board = Board()
        driver = Driver(Grid(checked, board), backend, settings, board, Finder())
        if isinstance(settings, SlurmConfig) and not settings.wait:
            return driver.submit()
        with page_at_end(folder):
            driver.run()
    return checked


def as_error(job: Job) -> LaunchError:
    """Why a job has no finished run, with the exit code that the job alone would end with."""
    ended = job.result
    if ended is None or job.state == "stopped":
        return LaunchError("stopped before its end. Start the same command again to go on.", exit_code=75)
    codes = {kind: code for code, kind in KINDS.items()}
    return LaunchError(
        f"{ended.kind}: {ended.message} (see {job.folder}/console.log)", exit_code=codes.get(str(ended.kind), 1)
    )
