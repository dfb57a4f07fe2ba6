"""Compare on a sweep: jobs in every state, seeds averaged, effects by hand, and the page in a real browser."""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_compare import write_run

from llm.compare.command import main
from llm.compare.entries import read_sweep
from llm.compare.figures import thinned
from llm.compare.page import as_script
from llm.compare.ranking import estimate, t_quantile
from llm.compare.show import page_at_end, print_ranked
from llm.errors import StoppedError
from tests.browser import chromium, needs_chromium

HOSTILE = "<script>alert('이름')</script>"
NAME = "<img src=x onerror=document.title=1>"  # of runs: an element that would do something if it were one
RATES = {"0.001": (1.5, 1.7), "0.01": (1.3, 1.2)}  # learning rate -> bits per byte of seeds 0 and 1


def write_job(sweep: Path, number: int, overrides: list[str], **record: Any) -> None:
    folder = sweep / "jobs" / f"{number:04d}"
    folder.mkdir(parents=True)
    value = {"number": number, "overrides": overrides, "state": "waiting", "run": None}
    text = json.dumps(value | {"attempts": []} | record)
    (folder / "job.json").write_text(text, encoding="utf-8")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two rates with two seeds each, a job that failed and one that nobody has begun; in a folder with a space."""
    outputs = tmp_path / "내 실험 outputs"
    folder = outputs / "sweeps" / "rates-12345678"
    number = 0
    for rate, values in RATES.items():
        for seed, value in enumerate(values):
            metrics = [
                {"step": s, "tokens": 100 * s, "seconds": s, "train/flops": 1e9 * s, "val/bits_per_byte": value + 3 / s}
                for s in (1, 2, 3)
            ]
            run = write_run(
                outputs,
                f"pretrain/rate{NAME}-0000000{number}",
                config={"stage": "pretrain", "seed": seed, "optimizer": {"learning_rate": float(rate)}},
                results={"val/bits_per_byte": value, "parameters": 1000},
                metrics=metrics,
                samples=[{"step": 3, "prompt": "대한민국의", "text": f"{HOSTILE} 주권은 {value}"}],
            )
            overrides = [f"optimizer.learning_rate={rate}", f"seed={seed}"]
            write_job(folder, number, overrides, state="done", run=str(run))
            number += 1
    attempt = {"started_at": "2026-01-01T00:00:00+00:00", "host": "h", "driver": 1, "exit_code": 70}
    failed = [attempt | {"kind": "diverged", "message": HOSTILE}]
    write_job(folder, 4, ["optimizer.learning_rate=1.0", "seed=0"], state="failed", attempts=failed)
    write_job(folder, 5, ["optimizer.learning_rate=1.0", "seed=1"])
    return folder


def compared(sweep: Path, *words: str) -> None:
    main([str(sweep), "--outputs", str(sweep.parents[1]), *words])


def markdown_said(capsys: pytest.CaptureFixture[str]) -> tuple[str, list[list[str]]]:
    """(what was printed, the rows of its tables)."""
    text = capsys.readouterr().out.replace("\\_", "_")
    return text, [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


# By hand


def test_an_interval_is_a_hand_worked_one() -> None:
    found = estimate([1.0, 2.0, 3.0])  # s = 1, so 4.303 / sqrt(3)
    assert (found.mean, found.num_values) == (2.0, 3)
    assert found.half_width == pytest.approx(2.4843, abs=1e-3)
    assert estimate([1.5]).half_width is None
    assert [t_quantile(n) for n in (1, 30, 40, 120)] == pytest.approx([12.706, 2.042, 2.0211, 1.9799], abs=6e-4)


def test_a_thinned_curve_keeps_its_ends_and_its_spikes() -> None:
    points = [(float(n), 1.0) for n in range(1000)]
    points[500] = (500.0, 99.0)
    kept = thinned(points, 50)
    assert len(kept) <= 50
    assert kept[0] == points[0] and kept[-1] == points[-1] and points[500] in kept


def test_no_text_ends_the_script_that_holds_it() -> None:
    figure = json.dumps("</script><script>alert(1)</script>\u2028", ensure_ascii=False)
    assert "</script" not in as_script({"name": figure})
    assert json.loads(as_script({"name": figure})) == {"name": json.loads(figure)}


# The terminal and Markdown


def test_seeds_are_averaged_and_every_job_has_its_state(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared(sweep, "--markdown")
    text, rows = markdown_said(capsys)
    ranking = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:5]}
    best, second, last = ranking.values()
    assert [best["optimizer.learning_rate"], second["optimizer.learning_rate"]] == ["0.01", "0.001"]
    assert best["val/bits_per_byte"].startswith("1.2500 ± 0.6353")  # 12.706 x 0.0707 / sqrt(2)
    assert second["val/bits_per_byte"].startswith("1.6000 ± 1.27")
    assert last["state"] == "1 failed, 1 waiting"
    assert "python train.py optimizer.learning_rate=0.01 seed=0 hydra.mode=RUN" in text


@pytest.mark.parametrize(
    ("search", "words", "best"),
    [
        ({"objectives": ["val/bits_per_byte", "tokens"], "directions": ["maximize", "minimize"]}, [], "0.001"),
        ({"objectives": ["val/bits_per_byte"], "directions": ["minimize"]}, ["--highest"], "0.001"),
        ({"objectives": ["val/nothing_yet"], "directions": ["maximize"]}, [], "0.01"),
    ],
    ids=["maximized", "as asked", "not measured yet"],
)
def test_a_search_is_ranked_by_its_first_objective_and_direction(
    search: dict[str, list[str]], words: list[str], best: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "search.json").write_text(json.dumps(search), encoding="utf-8")
    compared(sweep, "--markdown", *words)
    _, rows = markdown_said(capsys)
    assert rows[2][rows[0].index("optimizer.learning_rate")] == best


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--metric", "val/lss"], "--metric val/lss: no run has measured it. There are parameters, "),
        (["--key", "model.depth"], "--key model.depth: it is alike in all that is compared. These do: "),
        (["sweeps/none-00000000"], "sweeps/none-00000000 is a sweep without jobs: there is nothing to compare"),
    ],
)
def test_a_wrong_word_is_one_line_with_those_there_are(
    sweep: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    (sweep.parent / "none-00000000").mkdir()
    with pytest.raises(SystemExit) as ended:
        main([*words, str(sweep), "--outputs", str(sweep.parents[1])])
    assert ended.value.code == 2
    [error] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert line in error


# The end of a sweep


@pytest.mark.parametrize("ending", [None, StoppedError("stopped by SIGTERM")])
def test_a_sweep_leaves_its_page_however_it_ends(
    sweep: Path, caplog: pytest.LogCaptureFixture, ending: BaseException | None
) -> None:
    caplog.set_level("INFO", logger="llm")
    with pytest.raises(StoppedError) if ending else nullcontext(), page_at_end(sweep):
        if ending:
            raise ending
    assert "rates-12345678" in (sweep / "compare.html").read_text(encoding="utf-8")
    assert f"how its jobs compare: {sweep}/compare.html" in caplog.text


def test_a_page_that_cannot_be_made_fails_no_sweep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with page_at_end(tmp_path):
        pass
    assert f"{tmp_path}/compare.html is not written: ConfigError: " in caplog.text
    assert not (tmp_path / "compare.html").exists()


@pytest.mark.parametrize("width", [80, 300])
def test_a_terminal_gets_a_line_for_each_choice_of_a_sweep(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    console = Console(width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr("llm.compare.show.output_console", lambda: console)
    print_ranked(read_sweep(sweep))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [cells for cells in lines if cells]
    if width == 80:
        assert rows == [["1", "0.01", "2", "1.2500 ± 0.6353"], ["2", "0.001", "2", "1.6000 ± 1.2706"]]
    else:
        assert [cells[1:4] for cells in rows] == [["pretrain", "2 done", "0.01"], ["pretrain", "2 done", "0.001"]]


# The page


def test_the_page_asks_nothing_of_the_network_and_escapes_what_runs_wrote(sweep: Path, tmp_path: Path) -> None:
    compared(sweep, "--html", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 8_000_000
    assert HOSTILE not in page and NAME not in page and "&lt;script&gt;alert(&#x27;이름&#x27;)" in page
    assert re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page[: page.index('id="figures"')]) is None


@needs_chromium
def test_the_page_shows_every_figure_and_marks_choices_in_them(sweep: Path, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select
    from selenium.webdriver.support.wait import WebDriverWait

    compared(sweep, "--html", str(tmp_path / "page.html"))
    with chromium() as driver:
        driver.get((tmp_path / "page.html").as_uri())
        WebDriverWait(driver, 30).until(lambda d: d.find_elements(By.CSS_SELECTOR, "#curves .main-svg"))
        assert driver.get_log("browser") == []  # no error, and nothing that the page's policy has refused
        buttons = [each.get_attribute("data-title") for each in driver.find_elements(By.CSS_SELECTOR, ".modebar-btn")]
        assert "Download plot as a PNG" in " ".join(map(str, buttons))
        assert not [each for each in buttons if "Share" in str(each)]  # it would send the figure to a server
        rows = driver.find_elements(By.CSS_SELECTOR, "#ranked tbody tr")
        assert [row.find_elements(By.CSS_SELECTOR, "td")[1].text for row in rows] == ["1", "2", "3"]
        assert "diverged: " + HOSTILE in rows[2].text
        drawn = {plot.get_attribute("id") for plot in driver.find_elements(By.CSS_SELECTOR, ".plot:has(.main-svg)")}
        assert {"curves", "of-optimizer.learning_rate"} <= drawn
        lines = "#curves .scatterlayer .trace"
        assert len(driver.find_elements(By.CSS_SELECTOR, lines)) == 4  # a line for each run
        marks = driver.find_elements(By.CSS_SELECTOR, "#ranked input")
        marks[0].send_keys(Keys.SPACE)
        opacities = [each.value_of_css_property("opacity") for each in driver.find_elements(By.CSS_SELECTOR, lines)]
        assert sorted(opacities) == ["0.06", "0.06", "1", "1"]
        ActionChains(driver).move_to_element(driver.find_elements(By.CSS_SELECTOR, f"{lines} .point")[-1]).perform()
        label = WebDriverWait(driver, 30).until(lambda d: d.find_elements(By.CSS_SELECTOR, "#curves .hovertext"))[0]
        assert NAME in label.text
        assert driver.title == "rates-12345678: runs compared"
        view = Select(driver.find_element(By.ID, "view"))
        view.select_by_visible_text("bits per byte of held-out text against FLOPs")
        assert driver.find_element(By.CSS_SELECTOR, "#curves .xtitle").text == "FLOPs"
        by_metric = driver.find_element(By.CSS_SELECTOR, "#ranked thead th:nth-child(3) button")
        by_metric.click()
        ranks = "#ranked tbody td:nth-child(2)"
        order = [cell.text for cell in driver.find_elements(By.CSS_SELECTOR, ranks)]
        by_metric.click()  # the other way
        turned = [cell.text for cell in driver.find_elements(By.CSS_SELECTOR, ranks)]
        assert (order, turned) == (["1", "2", "3"], ["2", "1", "3"])  # what was not measured stays last
        assert driver.get_log("browser") == []
        field = driver.find_element(By.ID, "filter")
        field.send_keys("failed")
        shown = [row for row in driver.find_elements(By.CSS_SELECTOR, "#ranked tbody tr") if row.is_displayed()]
        assert len(shown) == 1 and "failed" in shown[0].text


@needs_chromium
def test_on_a_phone_only_tables_are_wider_than_the_screen(sweep: Path, tmp_path: Path) -> None:
    compared(sweep, "--html", str(tmp_path / "page.html"))
    with chromium() as driver:
        phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        driver.get((tmp_path / "page.html").as_uri())
        assert driver.execute_script("return document.documentElement.scrollWidth") == 360
