"""Talkers -> a page in the browser, on this machine alone: answers stream, and end on the server when they are stopped.

A request for an answer gets lines of JSON: {"piece": text} for each piece, and at the end {"end": why, "tokens": ...};
or {"waiting": true} while another answer of the same model is made, or {"error": line}. A request that cannot be gets
the error with status 400, or 413 where it is too long.
"""

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.chat.settings import check_room, read_settings
from llm.chat.talker import Message, Talker, open_talker
from llm.config.sampling import Sampling
from llm.errors import ConfigError, UserError
from llm.run.console import log
from llm.run.models import Model

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")  # any other name is another site's that was made to mean this machine (DNS rebinding)
MOST_BYTES = 512 * 1024  # of a request: a conversation of a quarter of a million syllables
MOST_READ = 64 * MOST_BYTES  # of one that is too long, so that the browser gets to read the answer
PAGE = Path(__file__).with_name("page.html")
LOOK_SECONDS = 0.2  # how often one who waits is looked for
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class TooLongError(UserError):
    """A request of more bytes than are read."""


@dataclass(frozen=True)
class Asked:
    """A request for an answer, checked."""

    talker: int
    messages: list[Message]
    settings: Sampling


def require_server() -> None:
    """Raises: ConfigError: what serves the page is not installed."""
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise ConfigError("--serve needs starlette and uvicorn. Install the extra: pip install -e '.[serve]'")


def serve(sources: Sequence[Model], settings: Sampling, *, system: str | None, port: int) -> None:
    """Show the page until Ctrl-C.

    Raises:
        ConfigError: the port is taken.
        DamagedError: a file of a model is gone.
    """
    with listen(port) as listening:
        talkers = [open_talker(source) for source in sources]
        import uvicorn
        from transformers.utils import logging

        logging.set_verbosity_error()
        app = make_app(talkers, settings, system=system)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=2
        )
        log.info("talk at http://%s:%d (Ctrl-C ends)", HOST, listening.getsockname()[1])
        with suppress(KeyboardInterrupt):  # the way to end it
            uvicorn.Server(config).run(sockets=[listening])
        log.info("ended")


def listen(port: int) -> socket.socket:
    """A socket on this machine alone, before a model is loaded.

    Raises:
        ConfigError: another program has the port, or it is for the system's own.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"--port={port} cannot be had ({error.strerror}). Set another one, or --port=0 for any that is free."
        ) from None
    return listening


def make_app(talkers: Sequence[Talker], settings: Sampling, *, system: str | None) -> "Starlette":
    """GET / is the page, POST /answer an answer."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
    from starlette.routing import Route

    locks = [asyncio.Lock() for _ in talkers]  # one answer of a model at a time; the others wait in line

    async def page(request: "Request") -> "Response":
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'"
        policy += "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; img-src data:"
        text = _page(talkers, settings, system).replace("{nonce}", nonce)
        return HTMLResponse(text, headers=HEADERS | {"Content-Security-Policy": policy})

    async def answer(request: "Request") -> "Response":
        try:
            _check_origin(request)
            asked = read_request(await _body(request), talkers)
            talker = talkers[asked.talker]
            ids, left_out = await _in_thread(lambda: talker.encode(asked.messages, asked.settings, key=str))
        except UserError as error:
            status = 413 if isinstance(error, TooLongError) else 400
            said = str(error).encode(errors="replace").decode()  # it may name what was sent
            return JSONResponse({"error": said}, status_code=status, headers=HEADERS)
        lines = _lines(request, talker, asked, ids, left_out, locks[asked.talker])
        return StreamingResponse(lines, media_type="application/x-ndjson", headers=HEADERS)

    routes = [Route("/", page), Route("/answer", answer, methods=["POST"])]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS))])


def _page(talkers: Sequence[Talker], settings: Sampling, system: str | None) -> str:
    models = [{"name": talker.name, "positions": talker.positions} for talker in talkers]
    state = json.dumps({"models": models, "settings": asdict(settings), "system": system or ""}, ensure_ascii=False)
    return PAGE.read_text(encoding="utf-8").replace("{state}", state.replace("<", "\\u003c"))


def _check_origin(request: "Request") -> None:
    """Another site's page may not ask, nor one that pretends to send a form."""
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{request.headers.get('host')}":
        raise ConfigError("this request comes from another site. Open the page that python -m llm.chat --serve names.")
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise ConfigError("a request must be application/json.")


async def _body(request: "Request") -> bytes:
    """Raises: TooLongError: after all of it is read, so that the browser gets to read the answer."""
    body, size = b"", 0
    async for chunk in request.stream():
        size += len(chunk)
        body = body + chunk if size <= MOST_BYTES else b""
        if size > MOST_READ:
            break
    if size > MOST_BYTES:
        raise TooLongError(
            f"the conversation has {size:,} bytes or more, and {MOST_BYTES:,} are read. Shorten it, or begin anew."
        )
    return body


def read_request(body: bytes, talkers: Sequence[Talker]) -> Asked:
    """Raises: ConfigError: what is asked for cannot be."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise ConfigError("the request is no JSON.") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("settings", {}), dict):
        raise ConfigError("the request must be an object with model, messages, system and settings.")
    number, system = asked.get("model", 0), asked.get("system", "")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(talkers):
        raise ConfigError(f"model={number} is none of the {len(talkers)} that are here.")
    messages = _turns(asked.get("messages"))
    if not isinstance(system, str):
        raise ConfigError("system must be a text.")
    if system.strip():
        messages = [{"role": "system", "content": system.strip()}, *messages]
    settings = read_settings(asked.get("settings", {}))
    check_room(settings, positions=talkers[number].positions, name=talkers[number].name)
    return Asked(number, messages, settings)


def _turns(messages: Any) -> list[Message]:
    """What was said by turns, the user first and last."""
    if not isinstance(messages, list) or len(messages) % 2 == 0:
        raise ConfigError("messages must be the turns of user and assistant, the user's first and last.")
    turns = []
    for place, message in enumerate(messages):
        role = "assistant" if place % 2 else "user"
        if not isinstance(message, dict) or message.get("role") != role or not isinstance(message.get("content"), str):
            raise ConfigError(f"messages[{place}] must be a text of the {role}.")
        turns.append({"role": role, "content": message["content"]})
    text = turns[-1]["content"].strip()
    if not text:
        raise ConfigError("the message is empty. Write one.")
    if "\ufffd" in text:
        raise ConfigError("the message has half a character. Write it again.")
    return [*turns[:-1], {"role": "user", "content": text}]


async def _lines(
    request: "Request", talker: Talker, asked: Asked, ids: list[int], left_out: int, lock: asyncio.Lock
) -> AsyncIterator[str]:
    from llm.model import Answer

    answer = Answer()
    if left_out:
        yield _line({"left_out": left_out})
    if lock.locked():
        yield _line({"waiting": True})
    async with _turn(lock, request.is_disconnected) as is_here:
        if not is_here:
            return
        pieces = talker.stream(ids, asked.settings, answer=answer)
        try:
            while not await request.is_disconnected():
                piece = await _in_thread(lambda: next(pieces, None))
                if piece is None:
                    yield _line(_end(answer))
                    return
                yield _line({"piece": piece})
        except RuntimeError as error:  # out of memory, by and large
            yield _line({"error": (str(error).splitlines() or ["the model failed"])[0]})
        finally:
            await _shielded(pieces.close)
            if answer.end == "closed":
                log.info("stopped after %d tokens", answer.num_tokens)


@asynccontextmanager
async def _turn(lock: asyncio.Lock, is_gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[bool]:
    """The lock, in order of asking; False where the one who asked did not wait for it.

    One that is free is taken at once, before anything else runs, so that who is not told to wait does not.
    """
    if not lock.locked():
        async with lock:
            yield True
        return
    waiting = asyncio.ensure_future(lock.acquire())
    try:
        while not waiting.done():
            await asyncio.wait([waiting], timeout=LOOK_SECONDS)
            if not waiting.done() and await is_gone():
                break
        yield waiting.done()
    finally:
        if waiting.done() and not waiting.cancelled():
            lock.release()
        else:
            waiting.cancel()


async def _in_thread(work: Callable[[], Any]) -> Any:
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(work)


async def _shielded(work: Callable[[], None]) -> None:
    """Done even where the request is being cancelled."""
    from anyio import CancelScope

    with CancelScope(shield=True):
        await _in_thread(work)


def _end(answer: Any) -> dict[str, Any]:
    return {
        "end": answer.end,
        "tokens": answer.num_tokens,
        "tokens_per_second": answer.tokens_per_second,
        "seconds_to_first": answer.seconds_to_first,
    }


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
