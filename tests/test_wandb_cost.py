"""The benchmark of what W&B costs measures each condition that it is asked for, by turns."""

import re
import sys

import pytest

from benchmarks import wandb_cost


def test_every_condition_is_measured_beside_a_run_without_wandb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--rounds 2 --block-steps 4 --log-every 2 --only refused online"
    monkeypatch.setattr(sys, "argv", ["wandb_cost", *words.split()])
    wandb_cost.main()
    table = re.findall(
        r"│ (\w+) +│ +([\d.]+) +│ +([\d.]+) +│ +[\d.]+ +│ +([\d.]+) +│ +([\d.]+) +│", capsys.readouterr().out
    )
    assert [row[0] for row in table] == ["local", "online", "refused"]
    assert (float(table[0][2]), float(table[0][3])) == (1, 0)
    assert all(float(speed) > 0 and float(ratio) > 0 and float(end) < 60 for _, speed, ratio, _, end in table)
