"""Verify: every byte of what a run left is looked at, and what differs is named."""

import re
from pathlib import Path

import pytest

from llm import verify as tool
from llm.errors import DamagedError
from llm.run.models import with_parents
from llm.run.record import key_of, write_record
from llm.run.runs import Run, check_files, list_files, load, metrics_of
from llm.trainer.checkpoint import CheckpointFolders, folder_of
from llm.verify import verify


def write_run(
    outputs: Path, stage: str, key: str, *, files: dict[str, str], status: str = "done", **folders: Path
) -> Run:
    path = outputs / stage / f"가-{key}"
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text, encoding="utf-8")
    record = {"stage": stage, "name": "가", "key": key, "status": status, "files": list_files(path)}
    write_record(path, record | {"folders": {name: str(folder) for name, folder in folders.items()}})
    return load(path)


FILES = {"config.yaml": "seed: 0\n", "model/a.safetensors": "01234567", "model/tokenizer.json": "{}"}


def test_a_run_as_it_was_made_has_no_fault_and_every_bit_of_a_file_counts(tmp_path: Path) -> None:
    files = FILES | {"log.txt": "", ".lock": "", "shards/manifest.json": "{}", "shards/train.bin": "0"}
    run = write_run(tmp_path, "pretrain", "00000001", files=files)  # a folder with a manifest has that for the rest
    CheckpointFolders().save_checkpoint({"step": 3}, folder_of(run.path / "checkpoints", 3))
    assert verify(run) == (["4 files", "1 checkpoints"], [])
    assert check_files(run, under="model/") == 2
    path = run.path / "model" / "a.safetensors"
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedError, match=r"a.safetensors is not what run.json says. Make the pretrain run again"):
            check_files(run)
    path.write_bytes(content + b"0")
    with pytest.raises(DamagedError, match=r"a.safetensors is not what run.json says"):
        check_files(run)
    path.unlink()
    with pytest.raises(DamagedError, match=r"a.safetensors is missing. Make the pretrain run again"):
        check_files(run)


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, "pretrain", "00000001", files=FILES, status="running")
    checkpoints = run.path / "checkpoints"
    for step in (1, 2):
        CheckpointFolders().save_checkpoint({"step": step}, folder_of(checkpoints, step))
    (folder_of(checkpoints, 2) / "state.json").write_text("{}", encoding="utf-8")
    (checkpoints / "bad-step-00000000").mkdir()
    seen, faults = verify(run)
    assert seen == ["2 checkpoints"]
    assert faults == [
        f"{folder_of(checkpoints, 2)}: state.json is not what the manifest says",
        f"{checkpoints / 'bad-step-00000000'} was set aside as damaged",
    ]


def test_parents_are_verified_first_and_once(tmp_path: Path) -> None:
    tokenizer = write_run(tmp_path, "tokenizer", "00000001", files={"tokenizer.json": "{}"})
    base = write_run(tmp_path, "pretrain", "00000002", files=FILES, tokenizer=tokenizer.path)
    tuned = write_run(tmp_path, "finetune", "00000003", files=FILES, base=base.path, tokenizer=tokenizer.path)
    assert [run.stage for run in with_parents([tuned, base])] == ["tokenizer", "pretrain", "finetune"]
    gone = write_run(tmp_path, "finetune", "00000004", files=FILES, base=tmp_path / "gone")
    with pytest.raises(DamagedError, match=r"finetune/가-00000004 was made from a base run that is gone: .*gone is no"):
        with_parents([gone])


def test_the_command_says_what_is_damaged_and_ends_with_74(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = write_run(tmp_path, "tokenizer", "00000001", files={"tokenizer.json": "{}"})
    base = write_run(tmp_path, "pretrain", "00000002", files=FILES, tokenizer=tokenizer.path)
    tool.main(["가", "--outputs", str(tmp_path)])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["done", "done"]
    (tokenizer.path / "tokenizer.json").write_text("[]", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        tool.main([str(base.path), "--outputs", str(tmp_path)])
    assert ended.value.code == 74
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["damaged", "done"]
    assert said.err.splitlines() == [
        f"error: {tokenizer.path / 'tokenizer.json'} is not what run.json says. Make the tokenizer run again with "
        "reuse=never, or put the file back.",
        "error: 1 of 2 runs are damaged.",
    ]


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


RECORD = {
    "name": "가",
    "status": "done",
    "identity": {"settings": {"seed": 7}},
    "results": {"val/loss": 2.625, "tokens_per_second": 1000},
}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"val/loss": 2.625', '"val/loss": 2.125', "what it says is not what was written, by its own record_digest"),
        ('"done"', '"dane"', "its status is 'dane', which is none of running, done, failed"),
        ("2.625", "NaN", "cannot be read"),
        ('"seed": 7', '"seed": 8', "what it says is not what was written"),
    ],
)
def test_what_was_changed_in_a_record_is_told_and_ends_with_74(
    old: str, new: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pretrain" / "가-00000001"
    write_run(tmp_path, "pretrain", "00000001", files=FILES)
    write_run(tmp_path, "tokenizer", "00000002", files=FILES)
    write_record(folder, load(folder).record | RECORD | {"key": key_of(RECORD["identity"])})
    change(folder / "run.json", old, new)
    with pytest.raises(SystemExit) as ended:
        tool.main(["*/*", "--outputs", str(tmp_path)])
    assert ended.value.code == 74
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith(f"error: {folder / 'run.json'}: ") and said in errors[0]
    assert errors[1:] == ["error: 1 of 2 runs are damaged."]


METRICS = '{"step": 1, "val/loss": 2.5}\n{"step": 2, "val/loss": 2.25}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (METRICS[:-9], r"metrics.jsonl:2: the rest is cut off, of 59 bytes"),
        (METRICS.replace('{"step": 2', '["step": 2'), r"metrics.jsonl:2: this is no JSON"),
        (METRICS.replace("2.25", "2.26"), r"metrics.jsonl is not what run.json says"),
        (None, r"metrics.jsonl is missing"),
    ],
)
def test_metrics_of_a_finished_run_are_checked_and_the_line_is_said(
    text: str | None, said: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path, "pretrain", "00000001", files=FILES | {"metrics.jsonl": METRICS})
    assert [record["step"] for record in metrics_of(run)] == [1, 2]
    (run.path / "metrics.jsonl").unlink() if text is None else (run.path / "metrics.jsonl").write_text(text)
    with pytest.raises(DamagedError, match=said):
        metrics_of(run)
    assert len(faults := verify(run)[1]) == 1 and re.search(said, faults[0])
    unfinished = Run(run.path, {key: value for key, value in run.record.items() if key != "files"})
    if text is not None and "cut off" in said:  # its writer was killed
        assert [record["step"] for record in metrics_of(unfinished)] == [1]
