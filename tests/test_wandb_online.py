"""The real W&B client against a server on loopback: what it has after kills, a sync, and a server that fails."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE
from tests.wandb_attempts import (
    CONFIG,
    RUN_ID,
    attempt,
    begin_run,
    expected,
    steps_and_tokens,
    sync,
)
from tests.wandb_server import WandbServer


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return begin_run(tmp_path / "outputs")


def test_an_online_run_has_its_records_config_group_and_results(server: WandbServer, outputs: Path) -> None:
    _, said = attempt(server, outputs, 0, 20)
    assert "wandb is online, for a login was found" in said
    assert steps_and_tokens(server.history(RUN_ID)) == expected(20)
    assert server.config(RUN_ID) == CONFIG
    assert {name: server.runs[RUN_ID][name] for name in ("groupName", "jobType", "displayName")} == {
        "groupName": "a sweep",
        "jobType": "pretrain",
        "displayName": "first-0123abcd",
    }
    assert server.summary(RUN_ID)["val/bits_per_byte"] == 1.25
    assert server.exit_code(RUN_ID) == 0


def test_an_online_run_that_was_killed_goes_on_without_gap_or_repetition(server: WandbServer, outputs: Path) -> None:
    attempt(server, outputs, 0, 40, "3")  # killed after 40 records, of which a checkpoint has 25
    attempt(server, outputs, 25, 60, "0")  # and again, before it had a checkpoint of its own
    attempt(server, outputs, 25, 70)
    assert steps_and_tokens(server.history(RUN_ID)) == expected(70)
    assert list(server.runs) == [RUN_ID]


def hang(_asked: str) -> None:
    time.sleep(40)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda _: 500, "for logging in failed"),
        (hang, "for logging in failed"),
        (lambda asked: hang(asked) if asked == "UpsertBucket" else None, "for it could not start online"),
    ],
    ids=["500", "hanging", "hanging after the login"],
)
def test_a_server_that_fails_from_the_start_leaves_the_run_offline_and_whole(
    fault: Any, reason: str, server: WandbServer, outputs: Path
) -> None:
    server.fault = fault
    seconds, said = attempt(server, outputs, 0, 20)
    assert f"wandb is offline, {reason}" in said
    assert seconds["start"] < PATIENCE
    server.fault = lambda _: None
    sync(server, outputs)
    assert steps_and_tokens(server.history(RUN_ID)) == expected(20)
