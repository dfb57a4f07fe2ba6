"""Compare and demo: finished runs as tables, from their records alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from llm.compare.command import main
from llm.compare.entries import Entry
from llm.compare.ranking import Ranking, rank, varying
from llm.demo import __main__ as demo
from llm.run.console import TextTable
from llm.run.runs import find_runs, list_files

LONG = "gpt2_tiny-char_bpe-korean_law-with-a-longer-name"


def write_run(
    outputs: Path,
    folder: str,
    *,
    config: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    metrics: list[dict[str, Any]] | None = None,
    samples: list[dict[str, Any]] | None = None,
    **record: Any,
) -> Path:
    """A run's folder with the given content, done unless `record` says otherwise."""
    path = outputs / folder
    path.mkdir(parents=True)
    name, key = path.name.rsplit("-", 1)
    record = {
        "stage": path.parent.name,
        "name": name,
        "key": key,
        "status": "done",
        "first_started_at": f"2026-01-01T00:00:00+00:00 {key}",
        "ended_at": f"2026-01-01T01:00:00+00:00 {key}",
        "seconds": 12.5,
        "results": results or {},
    } | record
    (path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (path / "config.yaml").write_text(yaml.safe_dump(config or {}), encoding="utf-8")
    for file, lines in (("metrics.jsonl", metrics), ("samples.jsonl", samples)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines or [])
        (path / file).write_text(text, encoding="utf-8")
    (path / "run.json").write_text(json.dumps(record | {"files": list_files(path)}), encoding="utf-8")
    return path


def config(learning_rate: float, **groups: Any) -> dict[str, Any]:
    return {
        "stage": "pretrain",
        "name": None,
        "outputs": "outputs",
        "reuse": "auto",
        "seed": 0,
        "optimizer": {"learning_rate": learning_rate, "warmup_steps": 10},
    } | groups


def write_sweep(outputs: Path) -> None:
    """Three runs of one sweep: the better one is the newer, and one failed."""
    worse, better = {"val/loss": 5.0, "val/bits_per_byte": 2.0}, {"val/loss": 4.0, "val/bits_per_byte": 1.5}
    write_run(outputs, "pretrain/a-00000001", config=config(0.001), results={"parameters": 2_402_720, **worse})
    write_run(outputs, "pretrain/a-00000002", config=config(0.01), results={"parameters": 2_402_720, **better})
    metrics = [
        {"step": 0, "tokens": 0, "seconds": 1.0, "val/loss": 9.0, "val/bits_per_byte": 2.5},
        {"step": 5, "tokens": 500, "seconds": 3.25, "train/loss": float("nan")},
    ]
    write_run(
        outputs,
        "pretrain/a-00000003",
        config=config(1.0),
        metrics=metrics,
        status="failed",
        error="DivergedError: the loss is nan",
    )


def one_spaced(text: str) -> list[str]:
    """The lines, with one space for each stretch of them."""
    return [" ".join(line.split()) for line in text.splitlines()]


def compare(outputs: Path, named: str) -> Ranking:
    return rank([Entry(run) for run in find_runs(str(outputs), named)])


def cells(ranking: Ranking) -> dict[str, list[str]]:
    table = ranking.table
    return {column: [row[i] for row in table.rows] for i, column in enumerate(table.columns)}


# What is compared


def test_the_best_run_comes_first_with_only_what_differs_and_what_came_out(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    assert cells(compare(tmp_path, "a")) == {
        "run": ["a-00000002", "a-00000001", "a-00000003"],
        "stage": ["pretrain"] * 3,
        "state": ["done", "done", "failed"],
        "optimizer.learning_rate": ["0.01", "0.001", "1.0"],
        "val/bits_per_byte": ["1.5000", "2.0000", "2.5000"],
        "val/loss": ["4.0000", "5.0000", "9.0000"],
        "parameters": ["2,402,720", "2,402,720", "-"],
        "seconds": ["12.5000", "12.5000", "3.2500"],
        "train/loss": ["-", "-", "nan"],
        "tokens": ["-", "-", "500"],
        "error": ["-", "-", "DivergedError: the loss is nan"],
    }


def test_runs_without_bits_per_byte_are_ranked_by_their_loss_after_those_with(tmp_path: Path) -> None:
    for key, results in {
        "00000001": {"vocab_size": 300},
        "00000002": {"val/loss": float("nan")},
        "00000003": {"val/loss": 2.0},
        "00000004": {"val/loss": 1.0},
        "00000005": {"val/loss": 9.0, "val/bits_per_byte": 3.0},
    }.items():
        write_run(tmp_path, f"pretrain/a-{key}", results=results)
    ranked = [name[-1] for name in cells(compare(tmp_path, "a"))["run"]]
    assert ranked == ["5", "4", "3", "1", "2"]


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([{"a": {"b": 1}}, {"a": {"b": 2}}], {"a.b": ["1", "2"]}),
        ([{"a": {"b": None, "c": 0}}, {"a": {"c": 0}}], {"a.b": ["null", "-"]}),
        ([{"a": {"b": ["가", 1]}}, {"a": {"b": []}}], {"a.b": ['["가", 1]', "[]"]}),
        ([{"model": {"b": 1}}, {"lora": {"rank": 8}}], {}),  # a whole group is absent
        ([{"m": {"b": 1}}, {"m": {"b": 2}}, {}], {"m.b": ["1", "2", "-"]}),
        ([{"name": "x", "outputs": "y", "reuse": "z", "stage": "s"}, {"name": "n"}], {}),
    ],
)
def test_only_keys_that_vary_are_shown(configs: list[dict[str, Any]], expected: dict[str, list[str]]) -> None:
    assert varying(configs) == expected


def test_ranks_over_different_held_out_text_come_with_a_warning(tmp_path: Path) -> None:
    results = {"val/bits_per_byte": 1.0}
    write_run(tmp_path, "pretrain/a-00000001", config={"data": {"source": "files", "path": "a"}}, results=results)
    write_run(tmp_path, "finetune/a-00000002", config={"data": {"source": "files", "path": "b"}}, results=results)
    write_run(tmp_path, "tokenizer/a-00000003", config={"data": {"source": "files", "path": "c"}})
    assert compare(tmp_path, "a").notes == [
        "They were not measured on the same held-out text (stage, data.path differ): ranks mean little."
    ]
    assert compare(tmp_path, "pretrain/*").notes == []


# Which runs


def test_a_run_that_is_named_twice_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path)
    main(["a-00000001", "pretrain/a-00000001", "--outputs", str(tmp_path)])
    (names,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("┃ run")]
    assert names.count("a-00000001") == 1


# How it looks


def test_many_columns_give_a_column_for_each_run_and_a_pipe_folds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in range(6):
        write_run(
            tmp_path, f"pretrain/{LONG}-0000000{key}", config=config(key), results={"val/loss": key, "a": 1, "b": 2}
        )
    main(["pretrain/*", "--outputs", str(tmp_path)])
    lines = one_spaced(capsys.readouterr().out)
    assert lines[1] == " ".join(["┃ run", *(f"┃ {LONG}-0000000{key}" for key in range(6)), "┃"])
    assert lines[5] == "│ optimizer.learning_rate │ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │"


def test_a_terminal_gets_as_many_runs_in_a_table_as_it_can_show_with_whole_keys() -> None:
    key = "trainer.validate_every_steps"
    columns = ["run", key, "b", "c", "d", "e", "f"]
    rows = [[f"{LONG}-{i}", f"{i}0000.5", *"bcdef"] for i in range(5)]
    console = Console(width=100, force_terminal=True, color_system=None, no_color=True)
    with console.capture() as capture:
        for table in TextTable(columns, rows).drawn(console):
            console.print(table)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 100
    found = [line.split("│")[2:-1] for line in lines if key in line]
    assert [cell.strip() for block in found for cell in block] == [row[1] for row in rows]
    assert [len(block) for block in found] == [3, 2]


def test_compare_and_demo_import_no_torch() -> None:
    heavy = "[m for m in ('torch', 'transformers') if m in sys.modules]"
    code = f"import sys, llm.compare.command, llm.demo.__main__; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# The demo


def write_demo(outputs: Path) -> None:
    """What the demo leaves, in miniature."""
    words = {"vocab_size": 4096, "exact_round_trip": 0.99953, "nfc_round_trip": 1.0, "tokens_per_eojeol": 1.9013}
    tokenizer = write_run(outputs, "tokenizer/words-00000000", results=words)
    shards = write_run(outputs, "shards/words-00000001")
    results = {
        "parameters": 2_402_720,
        "tokens": 244_831,
        "tokens_per_second_median": 4077.97,
        "val/loss_before": 8.3,
        "val/loss": 5.25,
        "val/bits_per_byte_before": 2.2,
        "val/bits_per_byte": 1.4,
        "unigram_bits_per_byte": 1.739,
    }
    base = write_run(
        outputs,
        "pretrain/demo-00000002",
        folders={"tokenizer": str(tokenizer), "shards": str(shards)},
        results=results,
        samples=[{"step": n, "prompt": p, "text": f" {n} {p} 끝"} for n in (0, 5, 10) for p in ("가", "나", "다")],
    )
    tuned = write_run(
        outputs,
        "finetune/demo-00000003",
        folders={"base": str(base)},
        results={"parameters": 2_500_000, "trainable_parameters": 61_440, "val/loss_before": 5.0, "val/loss": 4.0},
        samples=[
            {"step": 0, "prompt": "[b]무엇?", "text": " 처음"},
            *({"step": 9, "prompt": f"질문 {i}?", "text": f" 답 {i} [/b]"} for i in range(3)),
        ],
    )
    for folder in (shards / "shards", base / "model", tuned / "adapter"):
        folder.mkdir()


def test_the_demo_shows_its_numbers_what_the_models_say_and_where_everything_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_demo(tmp_path)
    (tmp_path / "wandb").mkdir()
    demo.main(["--outputs", str(tmp_path)])
    lines = one_spaced(capsys.readouterr().out)
    assert [line for line in lines if line.startswith("│")] == [
        "│ tokenizer │ vocabulary │ 4,096 tokens │",
        "│ │ lines that round-trip │ 99.95% exactly, 100.00% in NFC │",
        "│ │ tokens per eojeol │ 1.90 │",
        "│ model │ parameters │ 2,402,720 │",
        "│ │ tokens seen │ 244,831 at 4,078 tokens/s │",
        "│ │ validation loss │ 8.300 -> 5.250 nats per token │",
        "│ │ bits per byte │ 2.200 -> 1.400 │",
        "│ │ unigram entropy │ 1.739 bits per byte (token counts alone) │",
        "│ tuning │ trained by LoRA │ 61,440 of 2,500,000 parameters │",
        "│ │ held-out answer loss │ 5.000 -> 4.000 (-20.0%) │",
    ]
    assert lines[lines.index("The base model goes on from a beginning") :] == [
        "The base model goes on from a beginning",
        *("step 0 가 0 가 끝", "step 10 가 10 가 끝", "step 0 나 0 나 끝", "step 10 나 10 나 끝", ""),
        "The tuned model answers held-out questions",
        *(line for i in range(3) for line in (f"질문 질문 {i}?", f"답변 답 {i} [/b]")),
        "",
        "Where everything lies (the report is a page: open it in a browser)",
        f"tokenizer {tmp_path}/tokenizer/words-00000000",
        f"shards {tmp_path}/shards/words-00000001/shards",
        f"model {tmp_path}/pretrain/demo-00000002/model",
        f"adapter {tmp_path}/finetune/demo-00000003/adapter",
        f"W&B {tmp_path}/wandb",
        f"report {tmp_path}/reports/demo-00000003.html",
        "",
        "Talk to it",
        f'python -m llm.chat demo --prompt "{demo.QUESTION}" --outputs {tmp_path}',
    ]


def test_without_a_finished_demo_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "finetune/demo-00000001", status="failed", error="x")
    with pytest.raises(SystemExit) as stop:
        demo.main(["--outputs", str(tmp_path)])
    assert stop.value.code == 2
    message = f"error: there is no finished finetune run named demo under {tmp_path}/. Make it with make demo.\n"
    assert capsys.readouterr().err == message
