"""The launcher's settings and the configs of jobs -> where they are carried out: this machine, or a Slurm cluster."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llm.config import PoolConfig, SlurmConfig, StageConfig
from llm.data import available_cores
from llm.run import log, start_logging
from llm.run.owner import owned
from llm.sweep.pool import Pool
from llm.sweep.process import prepare_server
from llm.sweep.shares import Shares, free_memory, present_gpus
from llm.sweep.slurm import SEARCH_AT_ONCE, Cluster
from llm.sweep.slurm_queue import require_slurm


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
    shares = Shares(settings, num_jobs=num_jobs, gpus=present_gpus(), cores=available_cores(), memory=free_memory())
    for config in configs:
        shares.check(config)
    prepare_server({config.stage for config in configs})
    start_logging()
    log.info("%s, %d at once; their ledger and what they say: %s", of, shares.slots, folder)
    yield Pool(settings, shares)
