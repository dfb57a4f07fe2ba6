"""The report card of one model, by the command line: what it says is what its runs wrote, whatever they are named."""

import json
import lzma
import re
import zlib
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from test_compare import write_run
from test_compare_sweep import HOSTILE, NAME

from llm.compare.command import main
from llm.run.runs import list_files
from tests.browser import chromium, needs_chromium
from tests.korean import documents

HELD_OUT = documents(40)


def hold_out(run: Path, texts: list[str]) -> None:
    """Give a documents run its held-out text."""
    (run / "documents").mkdir()
    table = pyarrow.table({"text": texts, "origin": ["a:1"] * len(texts)})
    parquet.write_table(table, run / "documents" / "held_out-00000.parquet")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(record | {"files": list_files(run)}), encoding="utf-8")


def trained(losses: list[float], *, seconds: float) -> dict:
    """What a training of two steps a validation leaves; of its prompts one is hostile."""
    points = [
        {"step": 2 * n, "tokens": 200 * n, "seconds": n, "val/loss": loss, "val/bits_per_byte": loss / 2}
        for n, loss in enumerate(losses)
    ]
    training = {"step": 4, "tokens": 400, "seconds": 9, "train/flops": 2.5e9, "memory/gigabytes": 1.25}
    samples = [
        {"step": point["step"], "prompt": prompt, "text": f" {text}{point['step']}"}
        for point in points
        for prompt, text in ((HOSTILE, "뒤"), ("대한민국은", NAME))
    ]
    return {"metrics": [*points, training], "samples": samples, "seconds": seconds}


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Text, tokenizer, shards, a base, its tuning and an evaluation of that, each with a hostile name."""
    out = tmp_path / "outputs"
    text = write_run(out, f"documents/{NAME}-00000001", config={"data": {"name": NAME, "path": HOSTILE}}, seconds=1)
    hold_out(text, HELD_OUT)
    folders = {"documents": str(text)}
    words = write_run(out, f"tokenizer/{NAME}-00000002", folders=folders, results={"vocab_size": 4096}, seconds=2)
    folders |= {"tokenizer": str(words)}
    shards = write_run(out, f"shards/{NAME}-00000003", folders=folders, seconds=3)
    base = write_run(
        out,
        f"pretrain/{NAME}-00000004",
        folders={"shards": str(shards), "tokenizer": str(words)},
        results={
            "val/bits_per_byte_before": 3.5,
            "val/bits_per_byte": 1.25,
            "unigram_bits_per_byte": 1.75,
            "tokens": 400,
        },
        command="train.py name=first trainer.max_steps=4",
        commit="0123456789ab",
        **trained([8.0, 5.0, 4.0], seconds=100),
    )
    tuned = write_run(
        out,
        f"finetune/{NAME}-00000005",
        folders={"base": str(base)},
        results={"val/loss_before": 5.5, "val/loss": 4.5, "tokens": 400},
        command=f"train.py stage=finetune 'data.path={HOSTILE}'",
        commit="0123456789ab",
        **trained([5.5, 5.0, 4.5], seconds=50),
    )
    probes = {"probe/particles": 0.75, "probe/particles_low": 0.7, "probe/particles_high": 0.8}
    write_run(out, "evaluate/of-00000006", folders={"run": str(tuned)}, results=probes, seconds=4)
    write_run(
        out, "evaluate/other-00000007", folders={"run": "pretrain/other-00000008"}, results={"probe/particles": 0.1}
    )
    return out


def reported(outputs: Path) -> tuple[Path, str]:
    """(the page, the Markdown) that the command wrote."""
    main([f"finetune/{NAME}-00000005", "--report", "--outputs", str(outputs)])
    page = outputs / "reports" / f"{NAME}-00000005.html"
    return page, page.with_suffix(".md").read_text(encoding="utf-8").replace("\\_", "_").replace("\\", "")


def rows(text: str, head: str) -> list[list[str]]:
    """Of the table under a heading."""
    section = text[text.index(f"## {head}") :].split("\n## ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"][2:]


def test_the_report_says_what_the_runs_wrote(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, text = reported(outputs)
    assert capsys.readouterr().out.splitlines() == [str(page), str(page.with_suffix(".md"))]
    chain = ["documents", "tokenizer", "shards", "pretrain", "finetune", "evaluate"]
    assert [row[0] for row in rows(text, "From text to chat")] == chain
    held_out = "".join(HELD_OUT).encode()
    sizes = [len(zlib.compress(held_out, 9)), len(lzma.compress(held_out, preset=9 | lzma.PRESET_EXTREME))]
    by_zlib, by_xz = (f"{8 * size / len(held_out):.4f}" for size in sizes)
    levels = {row[0].split(" ", 1)[0]: row[1] for row in rows(text, "How well is held-out text known?")[1:-1]}
    assert (levels["zlib,"], levels["xz,"], levels["token"]) == (by_zlib, by_xz, "1.7500")
    bits = [float(row[1]) for row in rows(text, "How well is held-out text known?")]
    assert sorted(bits) == bits and 1.25 in bits and 3.5 in bits
    assert [row[2] for row in rows(text, "What pretrain measured")] == ["8.0000", "5.0000", "4.0000"]
    wrote = [row for row in rows(text, "What finetune wrote") if row[1].startswith("대한민국은")]
    shown = NAME.replace("<", "&lt;").replace(">", "&gt;")
    assert wrote == [[str(step), f"대한민국은<br>→ {shown}{step}"] for step in (0, 2, 4)]
    evaluated = [line for line in text.splitlines() if "probe/particles" in line]
    assert [line.split("|")[2:5] for line in evaluated] == [[" 0.7500 ", " 0.7000 to 0.8000 ", " 0.5 "]]
    cost = {row[0]: row[1:] for row in rows(text, "What it cost")}
    assert cost["pretrain"] == ["100 s", "400", "2.50e+09", "1.25 GB"]
    assert cost["all"] == ["2.7 min", "800", "5.00e+09", "-"]
    commands = [
        line.strip() for line in text[text.index("## How to make it again") :].splitlines() if line[:4] == "    "
    ]
    assert commands[0] == "git checkout 0123456789ab" and commands[-1].startswith("python train.py stage=finetune")
    assert "python train.py name=first trainer.max_steps=4" in commands


def test_the_report_names_what_it_cannot_be_made_of(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for names, said in (
        (["a", "b"], "--report is of one model, but 2 names are given. Give one of them."),
        (["evaluate/of-00000006"], "of-00000006 is a evaluate run, but a pretrain or finetune run is needed."),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*names, "--report", "--outputs", str(outputs)])
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_no_name_or_text_is_taken_for_html(outputs: Path) -> None:
    page, _ = reported(outputs)
    text = page.read_text(encoding="utf-8")
    assert HOSTILE not in text and NAME not in text and "&lt;script&gt;alert(&#x27;이름&#x27;)" in text
    assert re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", text[: text.index('id="figures"')]) is None


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_drawn_and_fits_a_phone(outputs: Path, scheme: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    page, _ = reported(outputs)
    with chromium() as driver:
        phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        driver.get(page.as_uri())
        plots = len(driver.find_elements("css selector", ".plot"))
        WebDriverWait(driver, 30).until(
            lambda d: len(d.find_elements("css selector", ".plot .scatterlayer .trace")) == 6
        )
        assert plots == 3 and driver.get_log("browser") == []
        assert driver.title == f"{NAME}: from text to chat"
        assert driver.execute_script("return document.documentElement.scrollWidth") == 360
        background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 30)"}[scheme]
