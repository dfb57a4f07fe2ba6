"""The launcher's settings and the configs of jobs -> where they are carried out: this machine, or a Slurm cluster."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm.config import PoolConfig, SlurmConfig, StageConfig
from llm.data import available_cores
from llm.run import log, start_logging
from llm.run.owner import owned
from llm.sweep.pool import Pool
from llm.sweep.process import ask_server, prepare_server
from llm.sweep.shares import BYTES_PER_JOB, Shares, free_memory, present_gpus
from llm.sweep.slurm import SEARCH_AT_ONCE, Cluster
from llm.sweep.slurm_queue import require_slurm


class Estimates:
    """The memory of a job's processes as a dry run says it, worked out once for those that share a model and rows."""

    def __init__(self, *, threads: int) -> None:
        self._threads = threads
        self._known: dict[str, int] = {}

    def __call__(self, config: StageConfig) -> int:
        if not hasattr(config, "trainer"):
            return BYTES_PER_JOB
        from llm.dry_run import memory_of

        any_config: Any = config
        same = {"name": None, "seed": 0, "optimizer": replace(any_config.optimizer, learning_rate=1e-3)}
        place = repr(replace(config, **same))
        if place not in self._known:
            self._known[place] = ask_server(memory_of, config, threads=self._threads) or BYTES_PER_JOB
        return self._known[place]


@contextmanager
def opened(
    settings: PoolConfig | SlurmConfig, configs: Sequence[StageConfig], folder: Path, *, num_jobs: int, of: str
) -> Iterator[Pool | Cluster]:
    """Where `num_jobs` jobs run, or so many of a search; `of` says what they are in the log.

    Raises:
        ConfigError: a job that can never run there, or another driver is at the same sweep of a cluster.
    """
    if isinstance(settings, SlurmConfig):
        require_slurm()
        is_search = num_jobs > len(configs)
        limit = (settings.array_parallelism or SEARCH_AT_ONCE) if is_search else None
        cluster = Cluster(settings, folder, at_once=limit)
        cluster.check(configs)
        with owned(folder, wait=False):  # two drivers could submit one job twice
            start_logging()
            log.info("%s on Slurm, as %s; their ledger and what they say: %s", of, cluster.name, folder)
            yield cluster
        return
    shares = Shares(
        settings,
        num_jobs=num_jobs,
        gpus=present_gpus(),
        cores=available_cores(),
        memory=free_memory(),
        bytes_of=Estimates(threads=settings.threads or max(1, available_cores() // num_jobs)),
    )
    for config in configs:
        shares.check(config)
    prepare_server({config.stage for config in configs})
    start_logging()
    log.info("%s, at most %d at once; their ledger and what they say: %s", of, shares.slots, folder)
    yield Pool(settings, shares)
