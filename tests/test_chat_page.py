"""The chat page, in a browser and by raw requests: it streams, stops on the server, and refuses in one line."""

import itertools
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

import uvicorn

from llm.chat import server
from llm.chat.talker import Talker
from llm.config.sampling import Sampling
from llm.errors import ConfigError
from tests.browser import chromium, keep_screenshot, needs_chromium
from tests.patience import PATIENCE
from tests.test_chat import ANSWER, QUESTION, outputs, talker  # noqa: F401  # fixtures

SETTINGS = Sampling(max_new_tokens=80, temperature=0)
BROKEN_BEFORE = [{"role": role, "content": text} for role, text in zip(
    ("user", "assistant", "user"), ("가", "나\ud83d", "다"), strict=True)]  # fmt: skip


@contextmanager
def served(*talkers: Any) -> Iterator[int]:
    listening = server.listen(0)
    app = server.make_app(talkers, SETTINGS, system=None)
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join(20)
        listening.close()


def ask(port: int, body: Any, **headers: str) -> tuple[int, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/answer", data=data, method="POST")
    for name, value in ({"Content-Type": "application/json"} | headers).items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def question(text: str, **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": text}],
        "settings": {"max_new_tokens": 80, "temperature": 0},
    } | more


def test_an_answer_streams_in_whole_syllables_and_says_its_pace(talker: Talker) -> None:  # noqa: F811
    with served(talker) as port:
        status, text = ask(port, question(QUESTION))
    lines = [json.loads(line) for line in text.splitlines()]
    pieces = [line["piece"] for line in lines[:-1]]
    assert (status, "".join(pieces)) == (200, ANSWER) and len(pieces) > 10
    assert lines[-1]["end"] == "eos" and lines[-1]["tokens"] > 10 and lines[-1]["tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (question(" "), {}, 400, "the message is empty"),
        (question("가" * 170), {}, 400, "Shorten it"),
        (question("가\ud83d"), {}, 400, "the text of the user has half a character"),
        (question("가", system="\ud83d"), {}, 400, "the text of the system has half a character"),
        (question("가", messages=BROKEN_BEFORE), {}, 400, "the text of the assistant has half a character"),
        (question("가", model="\ud83d"), {}, 400, "model=? is none of the 1"),
        (question("가" * 350_000), {}, 413, "bytes or more, and 524,288 are read. Shorten it"),
        (question("가", model=1), {}, 400, "model=1 is none of the 1"),
        (question("가", settings={"top_p": 2}), {}, 400, "top_p=2 is out of range"),
        (b"{", {}, 400, "the request is no JSON"),
        (question("가"), {"Content-Type": "text/plain"}, 400, "must be application/json"),
        (question("가"), {"Origin": "http://evil.example"}, 400, "comes from another site"),
        (question("가"), {"Host": "evil.example"}, 400, "Invalid host header"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    talker: Talker,  # noqa: F811
    body: Any,
    headers: dict[str, str],
    status: int,
    message: str,
) -> None:
    with served(talker) as port:
        code, text = ask(port, body, **headers)
    assert code == status and message in text and len(text.splitlines()) == 1


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"^--port=\d+ cannot be had \(Address already in use\)\. Set another"):
            server.listen(taken.getsockname()[1])


def test_without_its_packages_the_page_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in ("starlette", "uvicorn"):
        monkeypatch.setattr(server, "find_spec", lambda name, missing=missing: None if name == missing else object())
        with pytest.raises(
            ConfigError, match=r"^--serve needs starlette and uvicorn\. Install the extra: pip install -e"
        ):
            server.require_server()
    monkeypatch.setattr(server, "find_spec", lambda _name: object())
    server.require_server()


class Slow:
    """A talker that counts its pieces and goes on for ever, or up to `most_pieces`."""

    name, positions = "slow", 1000

    def __init__(self, most_pieces: int | None = None) -> None:
        self.made, self.at_once, self.most = 0, 0, 0
        self.most_pieces = most_pieces

    def encode(self, *_: Any, **__: Any) -> tuple[list[int], int]:
        return [0], 0

    def stream(self, *_: Any, answer: Any, **__: Any) -> Iterator[str]:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            for place in itertools.count():
                if place == self.most_pieces:
                    answer.end = "eos"
                    return
                time.sleep(0.05)
                self.made += 1
                yield "말 "
        finally:
            self.at_once -= 1
            answer.end = answer.end if place == self.most_pieces else "closed"


def test_two_requests_at_once_are_answered_one_after_the_other_and_two_models_side_by_side() -> None:
    one, other = Slow(most_pieces=8), Slow(most_pieces=8)
    with served(one, other) as port, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, port, question("가", model=model)) for model in (0, 0, 1)]
        answers = [[json.loads(line) for line in each.result()[1].splitlines()] for each in asked]
    assert (one.most, one.made, other.most, other.made) == (1, 16, 1, 8)  # never two of a model at once
    waited = [lines[0] == {"waiting": True} for lines in answers]
    assert sorted(waited[:2]) == [False, True] and not waited[2]
    for lines, has_waited in zip(answers, waited, strict=True):
        pieces = lines[1 if has_waited else 0 : -1]
        assert "".join(line["piece"] for line in pieces) == "말 " * 8 and lines[-1]["end"] == "eos"


@needs_chromium
def test_the_page_answers_side_by_side_and_shows_what_is_refused(talker: Talker) -> None:  # noqa: F811
    with served(talker, talker) as port, chromium() as driver:
        driver.get(f"http://127.0.0.1:{port}/")
        _send(driver, QUESTION)
        _until(lambda: "tokens/s" in _text(driver) or "토큰/초" in _text(driver))
        assert [e.text for e in driver.find_elements("css selector", ".assistant .bubble")] == [ANSWER, ANSWER]
        for width in (1280, 400):
            driver.set_window_size(width, 900)
            _until(lambda: driver.find_element("id", "settings").is_displayed() is (width > 760))  # noqa: B023  # now
            assert not driver.execute_script("return document.documentElement.scrollWidth > innerWidth")
            keep_screenshot(driver, f"chat-{width}")
        driver.execute_script("document.getElementById('message').value = '가'.repeat(350000)")
        driver.find_element("id", "send").click()
        _until(lambda: "413" in _text(driver))
        assert "Shorten it" in _text(driver)
        assert not [line for line in driver.get_log("browser") if "413" not in line["message"]]


@needs_chromium
def test_the_stop_button_ends_the_work_on_the_server() -> None:
    slow = Slow()
    with served(slow) as port, chromium() as driver:
        driver.get(f"http://127.0.0.1:{port}/")
        _send(driver, "가")
        _until(lambda: slow.made > 3)
        driver.find_element("id", "stop").click()
        _until(lambda: slow.at_once == 0)
        made = slow.made
        time.sleep(0.5)
        assert slow.made == made
        _until(lambda: driver.find_element("id", "send").is_displayed())


def _send(driver: Any, text: str) -> None:
    driver.find_element("id", "message").send_keys(text)
    driver.find_element("id", "send").click()


def _text(driver: Any) -> str:
    return str(driver.find_element("tag name", "body").text)


def _until(is_true: Any, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)
