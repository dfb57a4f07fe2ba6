"""Talkers -> a page in the browser by Gradio, on this machine alone; it loads and tells nothing elsewhere."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import fields
from html import escape, unescape
from importlib.util import find_spec
from typing import Any

from llm.chat.talker import Talker
from llm.config.evaluation import Sampling
from llm.config.fields import check_settings
from llm.errors import ConfigError, UserError
from llm.run.console import log

HOST = "127.0.0.1"
HOSTS = [HOST, "localhost"]  # any other name is another site's that was made to mean this machine (DNS rebinding)
NAMES = [each.name for each in fields(Sampling) if each.name != "stop"]  # of the settings that the page shows


def require_gradio() -> None:
    """Raises: ConfigError: it is not installed."""
    if find_spec("gradio") is None:
        raise ConfigError("--serve needs gradio. Install the extra: pip install -e '.[serve]'")


def serve(talkers: Sequence[Talker], settings: Sampling, *, system: str | None, port: int, wait: bool = True) -> Any:
    """Show the page until Ctrl-C, or without `wait` until what is returned is closed.

    Raises:
        ConfigError: the port is taken.
    """
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    page = make_page(talkers, settings, system=system)
    log.info("talk at http://%s:%d (Ctrl-C ends)", HOST, port)
    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,  # else a server of Node.js, where that is installed
            footer_links=[],
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # not Google's
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)]},
            prevent_thread_lock=not wait,
        )
    except OSError as error:
        raise ConfigError(f"--port={port} cannot be had ({error}). Set another one.") from None
    return page


def make_page(talkers: Sequence[Talker], settings: Sampling, *, system: str | None) -> Any:
    """A conversation with each model, side by side. Of one model one answer is made at a time; others wait in line."""
    import gradio

    with gradio.Blocks(title="llm.chat", analytics_enabled=False, fill_width=True) as page, gradio.Row():
        for talker in talkers:
            shown = [gradio.Textbox(system or "", label="system", render=False)]
            for name in NAMES:
                value = getattr(settings, name)
                precision = 0 if isinstance(value, int) else None
                shown.append(gradio.Number(value, label=name, precision=precision, render=False))
            with gradio.Column():
                gradio.ChatInterface(
                    _answers_of(talker, settings),
                    title=talker.name,
                    chatbot=gradio.Chatbot(render_markdown=False, height="65vh", render=False),  # as it was written
                    additional_inputs=shown,
                    additional_inputs_accordion="Settings",
                    analytics_enabled=False,
                )
    return page


def _answers_of(talker: Talker, settings: Sampling) -> Callable[..., Iterator[str]]:
    """What Gradio calls with a message: the answer so far, again and again; closed where the stop button is pressed."""
    from gradio import Error

    def answers(text: str, history: list[dict[str, Any]], system: str, *values: Any) -> Iterator[str]:
        try:
            chosen = Sampling(**dict(zip(NAMES, values, strict=True)), stop=settings.stop)
            check_settings(chosen)
            if not text.strip():
                raise ConfigError("the message is empty. Write one.")
            messages = [{"role": "system", "content": system.strip()}] if system.strip() else []
            for turn in history:  # whose content is a list of parts
                said = "".join(part["text"] for part in turn["content"])
                messages.append(
                    {"role": turn["role"], "content": unescape(said) if turn["role"] == "assistant" else said}
                )
            with closing(talker.answer([*messages, {"role": "user", "content": text.strip()}], chosen)) as pieces:
                answer = ""
                for piece in pieces:
                    answer = (answer + piece).lstrip()
                    yield escape(answer)  # else Gradio shows a picture for a tag, from wherever it is
        except UserError as error:
            raise Error(str(error), duration=None, print_exception=False) from None

    return answers
