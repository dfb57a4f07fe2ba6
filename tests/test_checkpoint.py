"""Checkpoints: what goes in comes out, damage is found, and an older good one takes over."""

import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.errors import DamagedError
from llm.trainer import checkpoint
from llm.trainer.checkpoint import FILES, CheckpointFolders, find_fault, folder_of, newest_good

ALL_FILES = (*FILES, "manifest.json")


def write(checkpoints: Path, step: int) -> Path:
    path = folder_of(checkpoints, step)
    CheckpointFolders().save_checkpoint({"step": step, "weight": torch.full((3, 5), float(step))}, path)
    return path


def back(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    CheckpointFolders().save_checkpoint(state, folder / "state")
    return CheckpointFolders().load_checkpoint(folder / "state")


# Round trip


@pytest.mark.parametrize(
    "value",
    [
        [None, True, False, 0, -1, 2**80, "", "한국어\n\u2028 \ud55c"],
        [[], (), {}, (1, [2, (3, {"a": (4,)})])],
        {"$tensor": "no tensor", "$items": 1, "$tuple": []},
        {None: 1, True: 2, 1.5: 3, "x": 4, 0: {2: (3,)}},
        [0.1, -0.0, 5e-324, sys.float_info.max, 1 / 3],
    ],
    ids=repr,
)
def test_plain_values_come_back_as_they_were(value: Any, tmp_path: Path) -> None:
    again = back({"value": value}, tmp_path)["value"]
    assert again == value
    assert repr(again) == repr(value)  # types, too: True is not 1, a tuple no list, -0.0 not 0.0


def test_tensors_come_back_bit_for_bit_and_parts_of_one_each_by_itself(tmp_path: Path) -> None:
    numbers, whole = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12.0).reshape(3, 4)
    dtypes = (torch.float32, torch.bfloat16, torch.int64, torch.bool)
    state = {str(dtype): (100 * numbers).to(dtype) for dtype in dtypes} | {
        "number": torch.tensor(1.5),
        "empty": torch.zeros(3, 0, 2),
        "whole": whole,
        "row": whole[0],
        "column": whole[:, 0],
        "same size": whole.view(4, 3),
        "again": whole,
        1: torch.zeros(1),
        "1": torch.ones(1),
    }
    again = back({"a": [state]}, tmp_path)["a"][0]
    assert again.keys() == state.keys()
    for name, tensor in state.items():
        assert again[name].dtype is tensor.dtype and torch.equal(again[name], tensor), name


def test_tied_weights_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    again = back({"embedding": weight, "head": weight}, tmp_path)
    assert again["embedding"].data_ptr() == again["head"].data_ptr()
    assert (tmp_path / "state" / FILES[0]).stat().st_size < 50_000


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", math.nan])
def test_what_is_no_plain_value_is_refused_with_its_place(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"/callbacks/1/state"):
        back({"callbacks": [0, {"state": value}]}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    assert {file.name for file in path.iterdir()} == set(ALL_FILES)
    assert (path / "tensors.safetensors").read_bytes()[8:9] == b"{"
    for name in ("state.json", "manifest.json"):
        assert (path / name).read_text(encoding="utf-8").startswith("{")


# Damage


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_flipped_bit_anywhere_is_found(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    whole = (path / name).read_bytes()
    for share in (0.0, 0.25, 0.5, 0.9, 0.999):
        assert find_fault(path) is None
        content = bytearray(whole)
        content[int(share * len(content))] ^= 1
        (path / name).write_bytes(content)
        assert find_fault(path)
        (path / name).write_bytes(whole)


# Falling back


def damage(path: Path) -> None:
    (path / "state.json").write_text("{}", encoding="utf-8")


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = write(tmp_path, 5), write(tmp_path, 10)
    damage(bad)
    assert newest_good(tmp_path) == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad-step-00000010", "step-00000005"]
    assert "step-00000010 is damaged (state.json is not what the manifest says)" in caplog.text
    assert CheckpointFolders().load_checkpoint(good)["step"] == 5


def test_when_all_are_damaged_the_run_stops_and_never_begins_again(tmp_path: Path) -> None:
    for step in (5, 10):
        damage(write(tmp_path, step))
    for _ in range(2):  # and the second time as well
        with pytest.raises(
            DamagedError, match=r"no checkpoint is good \(bad-step-00000005, bad-step-00000010\). Set reuse=never"
        ):
            newest_good(tmp_path)


def test_what_a_dead_process_left_under_a_temporary_name_is_removed(tmp_path: Path) -> None:
    good = write(tmp_path, 5)
    shutil.copytree(good, tmp_path / ".tmp-step-00000010-123")
    assert newest_good(tmp_path) == good
    assert list(tmp_path.iterdir()) == [good]


# Saving


@pytest.mark.parametrize(("broken", "step"), [("save_file", 10), ("write_json", 5), ("sha256_of", 10)])
def test_an_error_while_saving_leaves_the_older_checkpoint(
    broken: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write(tmp_path, 5)
    content = {file.name: file.read_bytes() for file in good.iterdir()}

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(checkpoint, broken, no_space)
        write(tmp_path, step)
    assert list(tmp_path.iterdir()) == [good]
    assert {file.name: file.read_bytes() for file in good.iterdir()} == content
    assert newest_good(tmp_path) == good
