"""The chat page in a browser: it answers with its turns kept, stops on the server, and asks nothing of elsewhere."""

import gc
import itertools
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the extra serve is not installed")

from llm.chat import page
from llm.chat.talker import Talker
from llm.config.evaluation import Sampling
from llm.errors import ConfigError
from tests.browser import chromium, keep_screenshot, needs_chromium
from tests.patience import PATIENCE
from tests.test_chat import ANSWER, QUESTION, outputs, talker  # noqa: F401  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore")  # of gradio's own
SETTINGS = Sampling(max_new_tokens=80, temperature=0)
WRITTEN = "**굵게** <img src='http://127.0.0.1:9/x' onerror='document.title=1'> &lt; 1 <|im_end|>"
MESSAGE = "//*[@data-testid='submit-button']/preceding::textarea[1]"


@contextmanager
def served(*talkers: Any, system: str | None = None) -> Iterator[str]:
    with socket.socket() as free:
        free.bind((page.HOST, 0))
        port = free.getsockname()[1]
    shown = page.serve(talkers, SETTINGS, system=system, port=port, wait=False)
    try:
        yield f"http://{page.HOST}:{port}/"
    finally:
        shown.close()
        gc.collect()  # what gradio leaves open is found here, where warnings are none of ours


class Slow:
    """A talker that says what it was asked, goes on for ever, and counts."""

    name = "slow"

    def __init__(self) -> None:
        self.made, self.at_once, self.asked = 0, 0, list[Any]()

    def answer(self, messages: Any, settings: Any) -> Iterator[str]:
        self.asked.append((messages, settings))
        self.at_once += 1
        try:
            for _ in itertools.count():
                time.sleep(0.05)
                self.made += 1
                yield "말 "
        finally:
            self.at_once -= 1


@needs_chromium
def test_two_models_answer_side_by_side_and_a_mistake_is_shown(talker: Talker) -> None:  # noqa: F811
    with served(talker, talker) as url, chromium() as driver:
        driver.get(url)
        for number in range(2):
            send(driver, QUESTION, number=number)
            until(lambda number=number: answers(driver)[number:] == [ANSWER])
        keep_screenshot(driver, "chat")
        send(driver, "가" * 1000, number=1)
        until(lambda: "Shorten it" in driver.find_element("tag name", "body").text)
        assert not [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]


@needs_chromium
def test_the_page_asks_nothing_of_elsewhere_and_shows_markup_as_text() -> None:
    class Marked(Slow):
        def answer(self, messages: Any, settings: Any) -> Iterator[str]:
            self.asked.append((messages, settings))
            yield WRITTEN

    marked = Marked()
    with served(marked, system="짧게") as url, chromium() as driver:
        driver.get(url)
        for number in range(2):
            send(driver, "가")
            until(lambda number=number: len(answers(driver)) == number + 1)
        until(lambda: answers(driver)[1] == WRITTEN)
        time.sleep(1)
        requested = driver.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
        assert len(requested) > 5 and not [each for each in requested if not each.startswith((url, "data:"))]
    [(_, settings), (messages, _)] = marked.asked
    assert settings == SETTINGS
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"].removesuffix("\n") == WRITTEN


@needs_chromium
def test_the_stop_button_ends_the_work_on_the_server() -> None:
    slow = Slow()
    with served(slow) as url, chromium() as driver:
        driver.get(url)
        send(driver, "가")
        until(lambda: slow.made > 3)
        driver.find_element("css selector", "button.stop-button").click()
        until(lambda: slow.at_once == 0)


def test_a_request_under_another_name_is_refused_and_a_taken_port_is_one_line() -> None:
    with served(Slow()) as url:
        request = urllib.request.Request(url, headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(request, timeout=PATIENCE)
        config = json.loads(urllib.request.urlopen(f"{url}config", timeout=PATIENCE).read())
        assert config["analytics_enabled"] is False
        port = int(url.rstrip("/").rpartition(":")[2])
        with pytest.raises(ConfigError, match=rf"^--port={port} cannot be had .* Set another one\.$"):
            page.serve([Slow()], SETTINGS, system=None, port=port)  # type: ignore[list-item]


def send(driver: Any, text: str, *, number: int = 0) -> None:
    """As a person does, to the model of that number."""
    until(lambda: len(driver.find_elements("xpath", MESSAGE)) > number)
    driver.find_elements("xpath", MESSAGE)[number].send_keys(text, "\n")


def answers(driver: Any) -> list[str]:
    return [each.text for each in driver.find_elements("css selector", "[data-testid=bot]")]


def until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)
