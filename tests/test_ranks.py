"""Several devices: the losses and the checkpoints are those of one, whatever shares the work out (gloo, on a CPU)."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from safetensors.torch import load_file

from llm.errors import ConfigError, DamagedError, LaunchError
from llm.run.record import history, read_metrics
from llm.trainer.strategy import environment
from tests.ranks import Case, run_case, run_on_ranks

SAME = 1e-5  # relative, of a loss: floats are added up in another order
WEIGHTS = 1e-5  # absolute, after six steps of 1e-3
WEIGHTS_OF_MUON = 1e-4  # it evens the singular values out in bf16, whose rounding a last bit in the gradient can turn
LOSSES = ("train/loss", "val/loss", "train/gradient_norm")

# What is trained, by the name of its folder; on one device, and on two in each way there is.
KINDS = {
    "gpt2": Case(folder="gpt2"),
    "lora": Case(folder="lora", method="lora"),
    "muon": Case(folder="muon", architecture="llama", algorithm="muon"),
    "best_fit": Case(folder="best_fit", architecture="llama", packing="best_fit"),
    "padded_vocabulary": Case(folder="padded_vocabulary", pad_vocab_to_multiple_of=20),
    "experts": Case(folder="experts", architecture="qwen3_moe"),
}
# The balance of experts is asked of each micro-batch by itself: cut otherwise, it is another sum.
SAME_CUT = ("experts",)
CUTS = {"gpt2": (4, 1), "best_fit": (4, 1)}  # rows per forward pass: 1 and 4 a step
STRATEGIES = ("ddp", "fsdp")
JOURNEY = ((1, "auto", 1), (2, "ddp", 2), (2, "fsdp", 1), (1, "auto", None))  # (devices, strategy, stop after)


def of_one(kind: str, folder: Path) -> Path:
    """What one device leaves, to compare two with."""
    return folder / f"{kind}-one-{2 if kind in SAME_CUT else 8}"


def shared(kind: str, strategy: str, rows: int, folder: Path) -> Case:
    return replace(
        KINDS[kind], folder=str(folder / f"{kind}-{strategy}-{rows}"), strategy=strategy, micro_batch_size=rows
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all the cases leave, those of two devices made in one launch."""
    folder = tmp_path_factory.mktemp("ranks")
    for kind, case in KINDS.items():
        for rows in (8, *(2 * rows for rows in CUTS.get(kind, ())), *([2] if kind in SAME_CUT else [])):
            run_case(replace(case, folder=str(folder / f"{kind}-one-{rows}"), micro_batch_size=rows))
    cases = [shared(kind, s, rows, folder) for kind in KINDS for s in STRATEGIES for rows in CUTS.get(kind, (2,))]
    run_on_ranks(cases, folder)
    return folder


def assert_same(found: Path, expected: Path) -> None:
    for name in LOSSES:
        steps, values = zip(*history(read_metrics(found / "metrics.jsonl"), name), strict=True)
        whole_steps, whole_values = zip(*history(read_metrics(expected / "metrics.jsonl"), name), strict=True)
        assert steps == whole_steps
        assert values == pytest.approx(whole_values, rel=SAME), name
    left, right = (load_file(path / "weights.safetensors") for path in (found, expected))
    assert left.keys() == right.keys()
    atol = WEIGHTS_OF_MUON if expected.name.startswith("muon") else WEIGHTS
    for name, weight in right.items():
        torch.testing.assert_close(left[name], weight, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_and_weights_are_the_same_on_two_devices_however_a_step_is_cut(kind: str, folder: Path) -> None:
    for rows in CUTS.get(kind, (2,)):
        for strategy in STRATEGIES:
            assert_same(folder / f"{kind}-{strategy}-{rows}", of_one(kind, folder))
        if kind in CUTS:
            assert_same(folder / f"{kind}-one-{2 * rows}", of_one(kind, folder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_the_same_whatever_made_it(kind: str, folder: Path) -> None:
    """The same keys, and the same places of tensors: tied weights once, the optimizer's state by number."""
    rows = CUTS.get(kind, (2,))[0]
    states = []
    for name in (of_one(kind, folder).name, *(f"{kind}-{strategy}-{rows}" for strategy in STRATEGIES)):
        path = folder / name / "checkpoints" / "step-00000006"
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        shapes = {key: tensor.shape for key, tensor in load_file(path / "tensors.safetensors").items()}
        states.append((shapes, state["state_dict"], state["optimizer_states"]))
    assert states[0] == states[1] == states[2]


def test_a_run_goes_on_under_any_strategy(folder: Path, tmp_path: Path) -> None:
    kinds = ("lora", "padded_vocabulary")  # whose checkpoints hold the most that is of their own
    for devices, strategy, stop_after in JOURNEY:
        how = {"strategy": strategy, "stop_after": stop_after, "micro_batch_size": 2}
        cases = [replace(KINDS[kind], folder=str(tmp_path / kind), **how) for kind in kinds]
        if devices == 1:
            for case in cases:
                run_case(case)
        else:
            run_on_ranks(cases, tmp_path)
    for kind in kinds:
        assert_same(tmp_path / kind, folder / f"{kind}-one-8")


def test_damaged_checkpoints_are_set_aside_by_rank_zero_and_where_none_is_good_every_rank_ends_with_that_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Under each strategy; the ranks above zero change nothing in the folder."""
    whole = replace(KINDS["gpt2"], micro_batch_size=2)
    run_case(replace(whole, folder=str(tmp_path / "first"), stop_after=5))
    cases = []
    for number in range(3):
        place = tmp_path / "cases" / str(number)
        shutil.copytree(tmp_path / "first", place)
        (place / "checkpoints" / "step-00000005" / "tensors.safetensors").write_bytes(b"damaged")
        cases.append(replace(whole, folder=str(place), strategy=STRATEGIES[number % 2]))
    for path in (Path(cases[-1].folder) / "checkpoints").iterdir():
        (path / "state.json").unlink()
    with pytest.raises(LaunchError, match=f"exit code {DamagedError.exit_code}"):
        run_on_ranks(cases, tmp_path / "cases")
    shown = capfd.readouterr().err
    assert "no checkpoint is good (bad-step-00000004, bad-step-00000005). Set reuse=never to begin again." in shown
    assert "Traceback" not in shown
    for case in cases[:-1]:
        left = {path.name for path in (Path(case.folder) / "checkpoints").iterdir()}
        assert left == {"bad-step-00000005", "step-00000004", "step-00000006"}
        assert_same(Path(case.folder), folder / "gpt2-one-8")
    assert (tmp_path / "cases-changes-1.txt").read_text(encoding="utf-8") == ""


def test_a_device_that_runs_out_of_memory_has_all_of_them_start_again_with_fewer_rows(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    case = replace(KINDS["gpt2"], folder=str(tmp_path / "gpt2"), strategy="ddp", micro_batch_size=4, most_rows=2)
    run_on_ranks([case], tmp_path)
    assert json.loads((tmp_path / "gpt2" / "micro_batch.json").read_text()) == {"rows": 4, "asked": 4, "size": 2}
    assert capfd.readouterr().err.count("a device ran out of memory; the next start takes fewer rows at once") == 2
    assert_same(tmp_path / "gpt2", folder / "gpt2-one-8")


SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({}, LightningEnvironment),
        ({"RANK": "0", "TORCHELASTIC_RUN_ID": "one"}, TorchElasticEnvironment),
        ({"SLURM_PROCID": "0"} | SRUN, SLURMEnvironment),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "1"}, LightningEnvironment),  # a batch script
        ({"SLURM_PROCID": "0", "RANK": "0", "TORCHELASTIC_RUN_ID": "one"}, TorchElasticEnvironment),
    ],
)
def test_who_started_the_processes_is_seen(
    variables: dict[str, str], kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"MASTER_ADDR": "nowhere"} | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR")
    assert type(environment()) is kind
    assert os.environ.get("MASTER_ADDR") == ("127.0.0.1" if kind is SLURMEnvironment else None)


def test_a_first_node_whose_name_has_no_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """c10d looks for it for half an hour, and says a line about IPv6."""
    more = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODELIST": "n[1-2].invalid"}
    for name, value in (SRUN | more | {"MASTER_ADDR": "nowhere"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(ConfigError, match=r"^the first node, n1\.invalid, has no address .* Set MASTER_ADDR=<its addr"):
        environment()
