"""What every test may rely on: no launch or credential of the machine reaches it, and the log is as new."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton

from llm.run import devices
from llm.run.console import log

LONGEST = (  # files, by the time that they take
    *("test_ranks.py", "test_sweep_train.py", "test_fast_path.py", "test_kills.py", "test_signals.py"),
    *("test_wandb_sweep.py", "test_readme.py", "test_mixture.py", "test_slurm_cluster.py", "test_benchmarks.py"),
    *("test_config.py", "test_disk.py", "test_kill_sweeps.py", "test_sweep_search.py", "test_chat_templates.py"),
    *("test_never.py", "test_data_shards.py", "test_wandb_online.py", "test_pretrained.py", "test_gpu_plan.py"),
    *("test_kill_sharding.py", "test_tuning.py", "test_dry_run.py", "test_sweep_shares.py", "test_sweep_driver.py"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--storm", action="store_true", help="the long form of tests/faults: hundreds of faults, not a few"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is slow waits for --storm; the longest files come first, so that none is left to one core at the end."""
    if not config.getoption("--storm"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))  # the order within a file stays


@pytest.fixture(autouse=True)
def _no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "HYDRA_FULL_ERROR", "WANDB_API_KEY")
    for name in list(os.environ):
        if name in names or name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_config_is_left() -> Iterator[None]:
    """What a command composed in this process is not there for the next test: HydraConfig is one for all."""
    yield
    GlobalHydra.instance().clear()
    Singleton._instances.pop(HydraConfig, None)


@pytest.fixture(autouse=True, scope="session")
def _no_bf16_by_itself() -> Iterator[None]:
    """trainer.precision=auto is fp32, so that a number in a test is one on any CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "CPU_INFO", Path(os.devnull))
        yield


@pytest.fixture(autouse=True, scope="session")
def _hangups_are_heard() -> None:
    """SIGHUP is as it comes, where the tests run under nohup too: what they start would ignore it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_logging_is_left() -> Iterator[None]:
    handlers, level, propagate = [*log.handlers], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)
