"""Credentials: what is taken for one, what is written in its place, and that paths stay as they are typed."""

import base64
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llm.config.compose import as_recorded
from llm.config.data import DataConfig
from llm.credentials import as_recorded_text, secret_in, without_secrets
from llm.data.corpus import open_corpus
from llm.errors import ConfigError, one_line_errors
from tests.korean import documents
from tests.test_config import config_of
from tests.wandb_attempts import begin_run, environment, sync
from tests.wandb_server import WandbServer

ROOT = Path(__file__).parents[1]
LETTERS = "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789" * 4
KEYS = [
    "hf_" + LETTERS[:34],
    "sk-" + LETTERS[:48],
    "sk-proj-" + LETTERS[:100] + "-_x",
    "sk-ant-api03-" + LETTERS[:93] + "AA",
    "wandb_v1_" + LETTERS[:77],
    *(f"gh{kind}_" + LETTERS[:36] for kind in "oprsu"),
    "github_pat_" + LETTERS[:22] + "_" + LETTERS[:59],
    "glpat-" + LETTERS[:20],
    "AKIAABCDEFGHIJKLMNOP",
    "ASIAABCDEFGHIJKLMNOP",
    "xoxb-123456789012-1234567890123-" + LETTERS[:24],
]
PATHS = [
    "data/sk-telecom-faq-longname.jsonl",
    "data/sk-텔레콤-자주-묻는-질문-모음-이천이십육년.jsonl",
    "data/hf_korean_textbooks/train-00000.parquet",
    "outputs/shards/hf_korean_textbooks_2026-1234abcd",
    "~/.cache/huggingface/hub/models--skt--kogpt2/snapshots/" + "0123456789" * 4,
    "runs/gho_st-stories/github_pat_ents.jsonl",
    "data/glpat-short.jsonl",
    "https://host:8080/a@b/text.jsonl",
    "ssh://git@github.com/me/text.git",
    "data/lang=ko/token=5/part.parquet",
    "s3://bucket/text.jsonl?versionId=abc",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("around", ["{}", "name={}", "a tag of {}, say", "https://{}@host/x-{}/y"])
def test_a_key_is_known_by_its_shape(key: str, around: str) -> None:
    assert without_secrets(around.format(key, key)) == around.format("***", "***")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("around", ["{}", "data.path={}: no such file"])
def test_a_path_stays_as_it_is_typed(path: str, around: str) -> None:
    text = around.format(path)
    assert (without_secrets(text), as_recorded_text(text), secret_in(text)) == (text, text, None)


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("logger.api_key=abc", "logger.api_key=***"),
        ("+hydra.job.env_set.WANDB_API_KEY=a b", "+hydra.job.env_set.WANDB_API_KEY=***"),
        ("hub.token=abc", "hub.token=***"),
        ("client_secret=abc", "client_secret=***"),
        ("cannot read 'hub.token=abc' here", "cannot read 'hub.token=***' here"),
        ("name=" + "0123456789" * 4, "name=***"),
        ("0123456789" * 4, "***"),
        ("at commit " + "0123456789" * 4, "at commit " + "0123456789" * 4),
        ("name=x-in-the-environment", "name=x-***"),
        ("data.path=https://me:a-word@host:80/x?a=b@c", "data.path=https://me:***@host:80/x?a=b@c"),
        ("zip://a.jsonl::https://me:a-word@host/x.zip", "zip://a.jsonl::https://me:***@host/x.zip"),
        ("https://host/x?part=1&X-Amz-Signature=a1b2&token=c", "https://host/x?part=1&X-Amz-Signature=***&token=***"),
        ("https://host/x?api_key=a&part=1.jsonl: gone", "https://host/x?api_key=***&part=1.jsonl: gone"),
        ("data.path=https://me:${oc.env:PW}@host/x", "data.path=https://me:${oc.env:PW}@host/x"),
        ("tokenizer.pad_token=<|pad|>", "tokenizer.pad_token=<|pad|>"),
        ("+x.mask_token=m", "+x.mask_token=m"),
        ("tokenizer.special_tokens=[a]", "tokenizer.special_tokens=[a]"),
    ],
)
def test_credentials_are_known_by_key_environment_and_url(
    argument: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "in-the-environment")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", __file__)  # the name of a file of them is none
    assert (without_secrets(argument), without_secrets(__file__)) == (kept, __file__)


# What is read back


@pytest.mark.parametrize(
    ("typed", "recorded"),
    [
        ("https://me:a-long-word@host/x", "https://me:${oc.env:DB_PASSWORD}@host/x"),
        ("https://you:typed@host/x", "https://you:***@host/x"),
        ("https://me:other@host/y", "${oc.env:MY_TEXT}"),
        (KEYS[0], "***"),
        ("data/a.jsonl", "data/a.jsonl"),
    ],
)
def test_a_setting_is_recorded_by_what_gives_it_again(
    typed: str, recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASSWORD", "a-long-word")
    monkeypatch.setenv("MY_TEXT", "https://me:other@host/y")
    assert as_recorded_text(typed) == recorded
    if "***" not in recorded:
        values = {"name": "text", "kind": "text", "path": recorded}
        assert as_recorded(DataConfig, values, place="config.yaml").path == typed


def test_what_was_recorded_without_its_credential_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DB_PASSWORD", raising=False)
    values = {"name": "text", "kind": "text", "path": "https://me:${oc.env:DB_PASSWORD}@host/x"}
    with pytest.raises(ConfigError, match=r"^a/config\.yaml: .*'DB_PASSWORD' not found.* Set it, as it was when"):
        as_recorded(DataConfig, values, place="a/config.yaml")
    (tmp_path / "other.jsonl").write_text('{"text": "다른 글이다."}\n', encoding="utf-8")
    config = as_recorded(DataConfig, values | {"path": f"{tmp_path}/***.jsonl"}, place="config.yaml")
    with pytest.raises(ConfigError, match=r"^data\.path=.*\*\*\* stands for a credential.*Give data="):
        open_corpus(config)


# What cannot be masked is refused


@pytest.mark.parametrize("key", ["name", "model.name", "logger.project", "data.text_field"])
def test_a_credential_in_what_a_run_is_found_by_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)} holds what looks like a credential, and would be"):
        config_of("data=text", "data.path=a.txt", f"{key}={KEYS[-3]}")


# What is said


def test_a_traceback_is_printed_without_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise KeyError("https://me:a-word@host")
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "a-word" not in said
    assert said.startswith("Traceback (most recent call last):\n") and said.endswith("'https://me:***@host'\n")


# From the command line

SMALL = [
    *("tokenizer.initial_alphabet=none", "tokenizer.vocab_size=400", "data=text", "data.held_out_share=0.1"),
    *("data.sequence_length=64", "data.batch_size=4", "model.num_layers=1", "model.num_heads=2"),
    *("model.hidden_size=16", "trainer.max_steps=2", "trainer.sample_tokens=4"),
]
LOGIN = "w4ndblogin" * 4
OF_ENVIRONMENT = {"MY_API_KEY": "c4n4ry-of-a-key", "DB_PASSWORD": "c4n4ry-of-a-db", "WANDB_API_KEY": LOGIN}
OF_URL = ["c4n4ry-of-a-url", "c4n4ry-of-a-query"]
TYPED = [KEYS[0], KEYS[1], KEYS[5], KEYS[-4], KEYS[-3]]


class _Guarded(BaseHTTPRequestHandler):
    """One file of text, for who has the password."""

    text = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents(200, seed=0)).encode()

    def do_GET(self) -> None:
        login = base64.b64encode(f"me:{OF_URL[0]}".encode()).decode()
        is_let_in = self.headers.get("Authorization") == f"Basic {login}" and OF_URL[1] in self.path
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(found[1]), int(found[2])) if found else (0, len(self.text) - 1)
        body = self.text[first : last + 1] if is_let_in else b""
        self.send_response((206 if found else 200) if is_let_in else 401)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(self.text)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Say nothing on the terminal."""


@pytest.fixture
def url() -> Iterator[str]:
    """Of a text that only its password and its token open."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Guarded) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://me:{OF_URL[0]}@127.0.0.1:{http.server_port}/text?token={OF_URL[1]}&part=1.jsonl"
        http.shutdown()


def train(server: WandbServer, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    own = environment(server, folder) | OF_ENVIRONMENT | {"WANDB_SAVE_CODE": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *words, f"outputs={folder}/outputs"]
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True)


def told(folder: Path, server: WandbServer, done: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    """(credential, where it stands) for each that a command wrote, sent or said."""
    places = {"the server": server.everything().encode(), "the terminal": (done.stdout + done.stderr).encode()}
    for path in (folder / "outputs").rglob("*"):
        places[str(path)] = str(path).encode() + (path.read_bytes() if path.is_file() else b"")
    every = [*OF_ENVIRONMENT.values(), *OF_URL, *TYPED]
    return [(each, place) for each in every for place, text in places.items() if each.encode() in text]


def test_no_credential_of_a_command_reaches_a_file_wandb_or_the_terminal(url: str, tmp_path: Path) -> None:
    with WandbServer() as server:
        done = train(
            *(server, tmp_path, *SMALL, f"data.path='{url}'", "logger.mode=offline", f"logger.group={TYPED[0]}"),
            f"logger.tags=[${{oc.env:MY_API_KEY}},a-{TYPED[1]},{TYPED[2]},'${{oc.env:DB_PASSWORD}} {TYPED[3]}']",
            f"hydra.job.name={TYPED[4]}",
        )
        assert done.returncode == 0, done.stderr
        assert told(tmp_path, server, done) == []
        uploaded = sync(server, tmp_path / "outputs", "--outputs", ".")
        assert "1 runs uploaded" in uploaded.stderr
        assert told(tmp_path, server, uploaded) == []
        ((_, of_run),) = server.runs.items()
        assert [of_run["groupName"], of_run["tags"]] == ["***", ["***", "a-***", "*** ***"]]
    (config,) = (tmp_path / "outputs" / "pretrain").glob("*/config.yaml")
    assert f"path: {url.replace(OF_URL[0], '***').replace(OF_URL[1], '***')}\n" in config.read_text(encoding="utf-8")


ONLINE = """
import sys
from pathlib import Path
from llm.config.training import LoggerConfig, WandbMode
from llm.logger import live
from llm.run.runs import Run
live.START_SECONDS = 90
outputs = Path(sys.argv[1])
config = LoggerConfig(mode=WandbMode.online, group=sys.argv[2], tags=sys.argv[3:])
run = Run(outputs / "pretrain" / "first-0123abcd", {"stage": "pretrain", "name": "first"})
with live.open_logger(config, run, outputs=outputs) as logger:
    logger.follow()
assert sys.argv[2] == config.group
"""


def test_an_online_run_uploads_neither_credentials_nor_code(tmp_path: Path) -> None:
    outputs = begin_run(tmp_path / "outputs")
    with WandbServer() as server:
        own = environment(server, tmp_path) | OF_ENVIRONMENT | {"WANDB_SAVE_CODE": "true"}
        given = [*TYPED, *OF_ENVIRONMENT.values(), f"https://me:{OF_URL[0]}@host/x?token={OF_URL[1]}"]
        (tmp_path / "program.py").write_text(f"{ONLINE}# {TYPED[0]}", encoding="utf-8")
        command = [sys.executable, "program.py", str(outputs), *given]
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
        assert (done.returncode, told(tmp_path, server, done)) == (0, []), done.stderr
        (metadata,) = (content for path, content in server.uploaded.items() if path.endswith("metadata.json"))
        assert json.loads(metadata)["args"][1:4] == ["***"] * 3
        assert not [path for path in server.uploaded if "program" in path]
