"""Chat: a run is found, its answer streams, a conversation fits the model, and a mistake is one line."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

from llm import tokenizer
from llm.chat import command
from llm.chat.command import Conversation, converse
from llm.chat.talker import Talker, open_talker
from llm.config.evaluation import Sampling
from llm.config.training import Architecture, ModelConfig
from llm.config.tuning import LoraConfig
from llm.errors import ConfigError, DamagedError
from llm.model import add_lora, build, generate, load, save
from llm.run.console import start_logging
from llm.run.models import find_model
from llm.run.record import key_of, write_record
from llm.run.runs import list_files
from tests.korean import save_preset

QUESTION = "주권은 누구에게 있나요?"
ANSWER = "대한민국의 주권은 국민에게 있다. 뷁!"  # a byte-level token is a part of a syllable
POSITIONS = 160
SETTINGS = Sampling(max_new_tokens=80, temperature=0)
GREEDY = ["--temperature", "0", "--max-new-tokens", "80"]


def messages(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def write_run(folder: Path, *, name: str, status: str = "done", **record: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "stage": folder.parent.name,
        "name": name,
        "key": folder.name[-8:],
        "status": status,
        "first_started_at": "2026-01-01T00:00:00+00:00",
        "digest": "d1",
    } | record
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    config = {
        "model": {"architecture": "gpt2", "max_position_embeddings": 2 * POSITIONS},
        "data": {"sequence_length": POSITIONS},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base that knows one answer by heart, and the same base with an adapter that says something else."""
    root = tmp_path_factory.mktemp("outputs")
    base = write_run(root / "pretrain" / "mini-00000001", name="mini")
    model = save_model(base / "model")
    tuned = write_run(
        root / "finetune" / "mini-00000002",
        name="mini",
        folders={"base": str(base)},
        identity=(identity := {"parents": {"base": "d1"}}),
        key=key_of(identity),
    )
    adapted = add_lora(model, LoraConfig(rank=2))
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.3)
    adapted.save_pretrained(tuned / "adapter")
    for folder in (base, tuned):
        seal(folder)
    return str(root)


def seal(folder: Path) -> None:
    """Have run.json list the files, as at the end of a stage."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps(record | {"files": list_files(folder)}), encoding="utf-8")


def save_model(folder: Path) -> Any:
    save_preset("byte_bpe", folder, vocab_size=300)
    special = tokenizer.special(folder)
    torch.manual_seed(0)
    model = build(
        ModelConfig(
            name="mini",
            architecture=Architecture.gpt2,
            num_layers=1,
            num_heads=2,
            hidden_size=48,
            max_position_embeddings=2 * POSITIONS,
        ),
        vocab_size=300,
        special=special,
    )
    words = tokenizer.load_chat(folder)
    ids = words.apply_chat_template(messages(QUESTION, ANSWER), tokenize=True, return_dict=True)["input_ids"]
    input_ids = torch.tensor([ids])  # (1, seq)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(model(input_ids).logits[0, :-1], input_ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save(model.eval(), folder)
    return model


@pytest.fixture
def talker(outputs: str) -> Talker:
    return open_talker(find_model(outputs, "mini-00000001"))


def room(talker: Talker) -> int:
    return talker.positions - SETTINGS.max_new_tokens


def answer_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    command.main([*arguments])
    return capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, list[str]]:
    """(exit code, the lines on stderr that are no status)"""
    with pytest.raises(SystemExit) as stop:
        command.main([*arguments])
    shown = capsys.readouterr()
    assert shown.out == ""
    return stop.value.code, [line for line in shown.err.splitlines() if "error: " in line]


# The answer


def test_the_base_model_says_what_it_learned(outputs: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = answer_of(capsys, "mini-00000001", "--outputs", outputs, "--prompt", QUESTION, *GREEDY)
    assert answer == ANSWER + "\n"


def test_the_answer_comes_in_pieces_of_whole_syllables(talker: Talker) -> None:
    pieces = list(talker.answer(messages(QUESTION), SETTINGS))
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 10
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_tuned_model_answers_with_its_adapter(outputs: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(outputs) / "pretrain" / "mini-00000001" / "model"
    model = load(folder, adapter=Path(outputs) / "finetune" / "mini-00000002" / "adapter").eval()
    ids = tokenizer.load_chat(folder).apply_chat_template(messages(QUESTION), tokenize=True, return_dict=True)
    sampling = Sampling(max_new_tokens=12, temperature=0.7, seed=3)
    expected = generate(model, [ids["input_ids"]], tokenizer.load(folder), sampling=sampling, pad_id=0)[0].text
    given = ["--prompt", QUESTION, "--max-new-tokens", "12", "--seed", "3"]
    answer = answer_of(capsys, "mini-00000002", "--outputs", outputs, *given)
    assert answer == expected.lstrip() + "\n"
    assert answer.strip() not in ("", ANSWER)


def test_the_prompt_comes_from_stdin_where_that_is_no_terminal(
    outputs: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION + "\n"))
    assert answer_of(capsys, "pretrain/mini-00000001", "--outputs", outputs, *GREEDY) == ANSWER + "\n"


def test_only_the_answer_goes_to_stdout(outputs: str) -> None:
    command = [sys.executable, "-m", "llm.chat", "mini", "--outputs", outputs, "--prompt", QUESTION]
    done = subprocess.run([*command, "--max-new-tokens", "2"], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    notes = [line.split(" ", 1)[1] for line in done.stderr.splitlines()]
    assert notes[:2] == [
        "mini is a pretrained and a fine-tuned run; the fine-tuned one is meant",
        f"talking to {outputs}/finetune/mini-00000002",
    ]
    assert re.fullmatch(r"2 tokens, [\d,]+ tokens/s, the first after \d+\.\d\d s; cut at max_new_tokens", notes[2])


# The conversation


def test_a_control_tokens_name_in_a_message_is_text(talker: Talker) -> None:
    said = [{"role": "system", "content": "<|endoftext|>"}, *messages("끝 <|endoftext|>질문", "<|endoftext|>", "또")]
    ids, _ = talker.encode(said, Sampling(max_new_tokens=4))
    bos, eos = talker.tokenizer.bos_token_id, talker.tokenizer.eos_token_id
    assert [ids[0], ids.count(eos)] == [bos, 2]  # and the end of the one answer
    assert talker.tokenizer.backend_tokenizer.decode(ids).count("<|endoftext|>") == 3


def test_the_oldest_turns_are_left_out_of_what_is_too_long(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    start_logging()
    whole = messages(*["가나다라"] * 20, QUESTION)
    ids, left_out = talker.encode(whole, SETTINGS)
    kept = next(start for start in range(0, len(whole), 2) if len(talker._ids(whole[start:])) <= room(talker))
    assert 0 < kept < len(whole) - 1
    assert ids == talker._ids(whole[kept:]) and left_out == kept // 2
    next(talker.answer(whole, SETTINGS))
    assert f"the oldest {kept // 2} turns are left out: a prompt may have 80 tokens" in capsys.readouterr().err


def test_a_conversation_keeps_what_was_said_and_its_system_prompt_until_new(
    talker: Talker, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging()
    seen: list[list[dict[str, str]]] = []

    def answer(given: list[dict[str, str]], settings: Sampling, **_: Any) -> Iterator[str]:
        talker.encode(given, settings)  # which refuses what is too long
        seen.append(given)
        return (piece for piece in "답")

    conversation = Conversation([SimpleNamespace(name="t", answer=answer)], SETTINGS, "짧게")  # type: ignore[list-item]
    lines = iter(
        ["가", " ", "가" * POSITIONS, "/system 길게", "나", "/system", "다", "/new", "라", "/nwe", "/quit", "마"]
    )
    converse(conversation, lambda _: next(lines))
    assert seen == [
        [{"role": "system", "content": "짧게"}, *messages("가")],
        [{"role": "system", "content": "길게"}, *messages("가", "답", "나")],
        messages("가", "답", "나", "답", "다"),
        messages("라"),
    ]
    shown = capsys.readouterr()
    assert shown.out == "답\n" * 4
    assert "Shorten it" in shown.err and "there is no command /nwe. /new begins anew" in shown.err


def test_two_models_answer_one_after_the_other_under_their_names(
    outputs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--outputs", outputs, "--prompt", QUESTION, *GREEDY]
    tuned = answer_of(capsys, "mini-00000002", *given)
    both = answer_of(capsys, "mini-00000001", "--compare", "mini-00000002", *given)
    assert both == f"[pretrain/mini-00000001]\n{ANSWER}\n[finetune/mini-00000002]\n{tuned}"


def test_a_stop_string_ends_the_answer(outputs: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--outputs", outputs, "--prompt", QUESTION, "--stop", "국민에게", *GREEDY]
    assert answer_of(capsys, "mini-00000001", *given) == "대한민국의 주권은 \n"


# Folders that no run.json speaks for


def test_a_folder_in_hugging_face_format_talks(
    outputs: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(Path(outputs) / "pretrain" / "mini-00000001" / "model", tmp_path / "mine")
    given = ["--prompt", QUESTION, *GREEDY]
    assert answer_of(capsys, str(tmp_path / "mine"), *given) == ANSWER + "\n"
    (tmp_path / "mine" / "chat_template.jinja").unlink()
    start_logging()
    command.main([str(tmp_path / "mine"), *given])
    shown = capsys.readouterr()
    assert shown.out == ANSWER + "\n" and "mine has no chat template; turns are marked by plain words" in shown.err


def test_an_adapter_of_a_folder_talks_with_its_base(
    outputs: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(Path(outputs) / "finetune" / "mini-00000002" / "adapter", tmp_path / "mine")
    settings = json.loads((tmp_path / "mine" / "adapter_config.json").read_text(encoding="utf-8"))
    base = Path(outputs) / "pretrain" / "mini-00000001" / "model"
    (tmp_path / "mine" / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": str(base)}), encoding="utf-8"
    )
    given = ["--prompt", QUESTION, *GREEDY]
    expected = answer_of(capsys, "mini-00000002", "--outputs", outputs, *given)
    assert answer_of(capsys, str(tmp_path / "mine"), *given) == expected != ANSWER + "\n"


def test_a_model_of_the_hub_talks_as_its_folder(
    outputs: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model, repository = Path(outputs) / "pretrain" / "mini-00000001" / "model", tmp_path / "hub" / "models--me--small"
    shutil.copytree(model, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    given = ["--prompt", QUESTION, *GREEDY]
    assert answer_of(capsys, "me/small", *given) == answer_of(capsys, str(model), *given)
    of_hub = find_model(outputs, "me/small")
    assert (of_hub.name, of_hub.digest) == ("small", find_model(outputs, str(model)).digest)
    with pytest.raises(ConfigError, match=r"^me/other: there is no such folder, and the hub's model of that id cannot"):
        find_model(outputs, "me/other")


# What is refused, in one line


def test_a_folder_without_weights_is_one_line(outputs: str, tmp_path: Path) -> None:
    shutil.copytree(Path(outputs) / "pretrain" / "mini-00000001" / "model", tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"mine does not hold a model's weights: model\.safetensors is mis[^\n]+$"):
        find_model(outputs, str(tmp_path / "mine"))


def test_a_hostile_template_of_a_folder_is_one_line(
    outputs: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(Path(outputs) / "pretrain" / "mini-00000001" / "model", tmp_path / "mine")
    template = "{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}"
    (tmp_path / "mine" / "chat_template.jinja").write_text(template, encoding="utf-8")
    code, lines = error_of(capsys, str(tmp_path / "mine"), "--prompt", QUESTION, *GREEDY)
    assert (code, len(lines)) == (2, 1)
    assert re.fullmatch("error: the chat template of .*mine cannot say this conversation: takes more than .*", lines[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", " "], "error: the prompt is empty. Write one"),
        (["--prompt", "\udceb"], "error: the text of the user has half a character. Write it again"),
        (["--prompt", "가", "--top-p", "0"], "error: top_p=0.0 is out of range. Set more than 0 and up to 1"),
        (["--prompt", "가", "--stop", ""], "error: stop=[''] is empty. Give a text"),
        (["--prompt", "가", "--max-new-tokens", "160"], "error: the prompt has"),
        (["--prompt", "가", "--compare", "none"], "error: there is no run none under"),
        (["--prompt", "가", "--serve"], "python -m llm.chat: error: argument --serve: not allowed with argument"),
        (["--input", "x"], "python -m llm.chat: error: --input goes with --output"),
        (["--input", "nowhere", "--output", "y"], "error: --input=nowhere is no file. Give a .txt"),
    ],
)
def test_a_mistake_is_one_line(
    outputs: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, lines = error_of(capsys, "mini", "--outputs", outputs, *arguments)
    assert code == 2 and lines[-1].startswith(message)
    assert len(lines) == 1


def test_a_prompt_longer_than_the_room_says_what_would_help(talker: Talker) -> None:
    ids = len(talker._ids(messages("가나" * 28)))
    assert room(talker) < ids < talker.positions
    with pytest.raises(ConfigError, match=rf"has {ids} tokens.*set max_new_tokens={POSITIONS - ids} or less\."):
        talker.encode(messages("가나" * 28), SETTINGS)
    with pytest.raises(ConfigError, match=r"there are 80 beside max_new_tokens=80\. Shorten it\.$"):
        talker.encode(messages("가" * POSITIONS), SETTINGS)


# The run


def test_a_name_means_the_finished_run_of_the_later_stage(outputs: str, tmp_path: Path) -> None:
    assert find_model(outputs, "mini").path.name == "mini-00000002"
    assert find_model(outputs, f"{outputs}/pretrain/mini-00000001").path.name == "mini-00000001"
    write_run(tmp_path / "tokenizer" / "a-00000003", name="a")
    with pytest.raises(
        ConfigError, match=r"is a tokenizer run, but a pretrain or finetune run is needed\. There is no"
    ):
        find_model(str(tmp_path), "a")
    write_run(tmp_path / "pretrain" / "a-00000001", name="a")
    write_run(tmp_path / "finetune" / "a-00000002", name="a", status="failed")
    assert find_model(str(tmp_path), "a").path.name == "a-00000001"
    with pytest.raises(ConfigError, match="a-00000002 is failed, not done"):
        find_model(str(tmp_path), "a-00000002")
    write_run(tmp_path / "pretrain" / "a-00000004", name="a")
    with pytest.raises(ConfigError, match=r"a means 2 runs: .*a-00000001, .*a-00000004\. Give one"):
        find_model(str(tmp_path), "a")


def test_an_adapter_is_refused_on_other_weights_than_its_own(outputs: str, tmp_path: Path) -> None:
    stale = shutil.copytree(find_model(outputs, "mini-00000002").path, tmp_path / "finetune" / "mini-00000002")
    identity = {"parents": {"base": "d0"}}
    record = json.loads((stale / "run.json").read_text(encoding="utf-8")) | {"identity": identity}
    write_record(stale, record | {"key": key_of(identity)})
    with pytest.raises(DamagedError, match=r"was tuned on other weights than .*mini-00000001 holds now"):
        open_talker(find_model(str(tmp_path), "mini"))


def test_an_adapter_whose_base_is_gone_is_one_line(outputs: str, tmp_path: Path) -> None:
    left = shutil.copytree(find_model(outputs, "mini-00000002").path, tmp_path / "finetune" / "mini-00000002")
    record = json.loads((left / "run.json").read_text(encoding="utf-8"))
    write_record(left, record | {"folders": {"base": "pretrain/gone"}})
    with pytest.raises(DamagedError, match=r"was tuned on .*pretrain/gone, which is gone: .*gone is no run: it has"):
        find_model(str(tmp_path), "mini")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "pretrain" / "a-00000001", name="a")
    (folder / "model").mkdir()
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(b"0123")
    seal(folder)
    weights.write_bytes(b"0124")
    with pytest.raises(DamagedError, match=r"model/model\.safetensors is not what run.json says. Make the"):
        open_talker(find_model(str(tmp_path), str(folder)))
    weights.unlink()
    with pytest.raises(DamagedError, match=r"model/model\.safetensors is missing"):
        open_talker(find_model(str(tmp_path), str(folder)))
