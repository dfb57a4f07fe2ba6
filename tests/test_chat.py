"""Chat: an answer streams, a conversation fits the model, a file of prompts is answered, and a mistake is one line."""

import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

from llm.chat import command
from llm.chat.batch import read_prompts, write_answers
from llm.chat.command import Conversation, converse
from llm.chat.talker import Talker
from llm.config.evaluation import Sampling
from llm.config.training import Architecture, ModelConfig
from llm.config.tuning import LoraConfig
from llm.errors import ConfigError, DamagedError, DataError
from llm.model import add_lora, build, generate, load, save
from llm.run.console import start_logging
from llm.run.models import find_model
from llm.run.record import key_of, write_record
from llm.run.runs import list_files
from llm.tokenizer.folder import load_chat, load_tokenizer, read_special
from tests.korean import save_preset

QUESTION = "주권은 누구에게 있나요?"
ANSWER = "대한민국의 주권은 국민에게 있다. 뷁!"  # a byte-level token is a part of a syllable
POSITIONS = 160
SETTINGS = Sampling(max_new_tokens=80, temperature=0)
GREEDY = ["--temperature", "0", "--max-new-tokens", "80"]
ROOM = POSITIONS - 80  # for a prompt


def messages(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def write_run(folder: Path, save: Any, **record: Any) -> Path:
    """A finished run, whose files are what `save` leaves in its folder."""
    folder.mkdir(parents=True)
    model = {"architecture": "gpt2", "max_position_embeddings": 2 * POSITIONS}
    config = {"model": model, "data": {"sequence_length": POSITIONS}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    save(folder)
    about = {"stage": folder.parent.name, "name": "mini", "key": folder.name[-8:], "status": "done", "digest": "d1"}
    about |= {"first_started_at": "2026-01-01T00:00:00+00:00", "files": list_files(folder)} | record
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base that knows one answer by heart, and the same base with an adapter that says something else."""
    root = tmp_path_factory.mktemp("outputs")
    base = write_run(root / "pretrain" / "mini-00000001", lambda folder: save_model(folder / "model"))
    adapted = add_lora(load(base / "model"), LoraConfig(rank=2))
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.3)
    write_run(
        root / "finetune" / "mini-00000002",
        lambda folder: adapted.save_pretrained(folder / "adapter"),
        folders={"base": str(base)},
        identity=(identity := {"parents": {"base": "d1"}}),
        key=key_of(identity),
    )
    return str(root)


def save_model(folder: Path) -> None:
    save_preset("byte_bpe", folder, vocab_size=300)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "hidden_size": 48}
    config = ModelConfig(name="mini", architecture=Architecture.gpt2, max_position_embeddings=2 * POSITIONS, **shape)
    model = build(config, vocab_size=300, special=read_special(folder))
    words = load_chat(folder)
    ids = words.apply_chat_template(messages(QUESTION, ANSWER), tokenize=True, return_dict=True)["input_ids"]
    input_ids = torch.tensor([ids])  # (1, seq)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(model(input_ids).logits[0, :-1], input_ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save(model.eval(), folder)


@pytest.fixture(scope="module")
def talker(outputs: str) -> Talker:
    return Talker(find_model(outputs, "mini-00000001"))


@pytest.fixture
def mine(outputs: str, tmp_path: Path) -> Path:
    """The base's model as anybody's: no run stands behind it."""
    return Path(shutil.copytree(Path(outputs) / "pretrain" / "mini-00000001" / "model", tmp_path / "mine"))


def answer_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    command.main([*arguments])
    return capsys.readouterr().out


# The answer


def test_only_the_answer_goes_to_stdout(outputs: str, capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    command.main(["mini", "--outputs", outputs, "--prompt", QUESTION, "--max-new-tokens", "2"])
    shown = capfd.readouterr()
    assert len(shown.out.splitlines()) == 1
    notes = [line.split(" ", 1)[1] for line in shown.err.splitlines()]
    assert notes[:2] == [
        "mini is a pretrained and a fine-tuned run; the fine-tuned one is meant",
        f"talking to {outputs}/finetune/mini-00000002",
    ]
    assert re.fullmatch(r"2 tokens, [\d,]+ tokens/s, the first after \d+\.\d\d s; cut at max_new_tokens", notes[2])


def test_the_answer_comes_in_pieces_of_whole_syllables(talker: Talker) -> None:
    pieces = list(talker.answer(messages(QUESTION), SETTINGS))
    assert "".join(pieces).lstrip() == ANSWER
    assert len(pieces) > 10
    assert not any("\ufffd" in piece for piece in pieces)


def test_two_models_answer_one_after_the_other_the_tuned_one_with_its_adapter(
    outputs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--outputs", outputs, "--prompt", QUESTION]
    base, adapter = (
        Path(outputs) / name for name in ("pretrain/mini-00000001/model", "finetune/mini-00000002/adapter")
    )
    ids = load_chat(base).apply_chat_template(messages(QUESTION), tokenize=True, return_dict=True)
    sampling = Sampling(max_new_tokens=12, temperature=0.7, seed=3)
    how: dict[str, Any] = {"sampling": sampling, "pad_id": 0}
    expected = generate(load(base, adapter=adapter).eval(), [ids["input_ids"]], load_tokenizer(base), **how)[0].text
    tuned = answer_of(capsys, "mini-00000002", *given, "--max-new-tokens", "12", "--seed", "3")
    assert tuned == expected.lstrip() + "\n" and tuned.strip() not in ("", ANSWER)
    tuned = answer_of(capsys, "mini-00000002", *given, *GREEDY)
    both = answer_of(capsys, "mini-00000001", "--compare", "mini-00000002", *given, *GREEDY)
    assert both == f"[pretrain/mini-00000001]\n{ANSWER}\n[finetune/mini-00000002]\n{tuned}"


def test_the_prompt_comes_from_stdin_and_a_stop_string_ends_the_answer(
    outputs: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(QUESTION + "\n"))
    asked = ["pretrain/mini-00000001", "--outputs", outputs, "--stop", "국민에게", *GREEDY]
    assert answer_of(capsys, *asked) == "대한민국의 주권은 \n"


def test_a_folder_in_hugging_face_format_talks(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "chat_template.jinja").unlink()
    settings = json.loads((mine / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["eos_token"], settings["pad_token"]  # the model names its end itself
    (mine / "tokenizer.sha256").unlink()
    (mine / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    start_logging()
    command.main([str(mine), "--prompt", QUESTION, *GREEDY])
    shown = capsys.readouterr()
    assert shown.out == ANSWER + "\n" and "mine has no chat template; turns are marked by plain words" in shown.err


def test_a_model_of_the_hub_talks_as_its_folder(
    mine: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--me--small"
    shutil.copytree(mine, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    assert answer_of(capsys, "me/small", "--prompt", QUESTION, *GREEDY) == ANSWER + "\n"
    of_hub = find_model(tmp_path, "me/small")
    assert (of_hub.name, of_hub.digest) == ("small", find_model(tmp_path, str(mine)).digest)
    with pytest.raises(ConfigError, match=r"^me/other: there is no such folder, and the hub's model of that id cannot"):
        find_model(tmp_path, "me/other")


# The conversation


def test_a_control_tokens_name_in_a_message_is_text(talker: Talker) -> None:
    said = [{"role": "system", "content": "<|endoftext|>"}, *messages("끝 <|endoftext|>질문", "<|endoftext|>", "또")]
    ids, _ = talker.encode(said, Sampling(max_new_tokens=4))
    bos, eos = talker.tokenizer.bos_token_id, talker.tokenizer.eos_token_id
    assert [ids[0], ids.count(eos)] == [bos, 2]  # and the end of the one answer
    assert talker.tokenizer.backend_tokenizer.decode(ids).count("<|endoftext|>") == 3


def test_the_oldest_turns_are_left_out_of_what_is_too_long(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    start_logging()
    whole, roomy = messages(*["가나다라"] * 20, QUESTION), Sampling(max_new_tokens=1)
    ids, left_out = talker.encode(whole, SETTINGS)
    assert 0 < left_out < 10 and ids == talker.encode(whole[2 * left_out :], roomy)[0]
    assert len(talker.encode(whole[2 * left_out - 2 :], roomy)[0]) > ROOM
    next(talker.answer(whole, SETTINGS))
    assert f"the oldest {left_out} turns are left out: a prompt may have 80 tokens" in capsys.readouterr().err


def test_a_conversation_keeps_what_was_said_and_its_system_prompt_until_new(
    talker: Talker, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging()
    seen: list[list[dict[str, str]]] = []

    def answer(given: list[dict[str, str]], settings: Sampling, **_: Any) -> Iterator[str]:
        talker.encode(given, settings)  # which refuses what is too long
        seen.append(given)
        return iter([" ", "답"])

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


# A file of prompts

DRAWN = Sampling(max_new_tokens=12, temperature=1.0, top_k=0, top_p=1.0)
TEXTS = ["주권은 누구에게 있나요?", "가", "나라의 이름은 무엇인가요?", "가", "하나"]


def answers(talker: Talker, source: Path, output: Path, *, key: str = "k", batch_size: int = 3) -> bytes:
    prompts = read_prompts(source, system=None, key=key)
    write_answers(talker, prompts, output, settings=DRAWN, batch_size=batch_size)
    return output.read_bytes()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def test_many_at_once_are_what_each_is_alone(talker: Talker, prompts: Path, tmp_path: Path) -> None:
    together = answers(talker, prompts, tmp_path / "a.jsonl")
    assert together == answers(talker, prompts, tmp_path / "b.jsonl", batch_size=1)
    lines = [json.loads(line) for line in together.splitlines()]
    assert [line["messages"][0]["content"] for line in lines] == TEXTS
    assert [line["line"] for line in lines] == [1, 3, 5, 7, 9]
    alone = "".join(talker.answer(messages("가"), DRAWN)).strip()  # said again, it is drawn by the next seed
    assert lines[1]["answer"] == alone != lines[3]["answer"]


def test_a_file_is_answered_by_the_command_which_goes_on_where_it_was_stopped(
    outputs: str, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "a.jsonl"
    asked = ["mini-00000001", "--outputs", outputs, "--input", str(prompts), "--output", str(output)]
    command.main([*asked, "--max-new-tokens", "4"])
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == len(TEXTS)
    for cut in (0, 7, -1):
        output.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
        command.main([*asked, "--max-new-tokens", "4"])
        assert output.read_bytes() == whole
    for other in (["--max-new-tokens", "5"], ["--max-new-tokens", "4", "--system", "짧게"]):
        with pytest.raises(SystemExit):
            command.main([*asked, *other])
        assert output.read_bytes() == whole


def test_other_answers_are_not_written_over(talker: Talker, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.jsonl"
    before = answers(talker, prompts, output)
    with pytest.raises(ConfigError, match=r"holds something else: other prompts, another model or other settings"):
        answers(talker, prompts, output, key="other")
    prompts.write_text("다른 것\n", encoding="utf-8")
    for held in (before, b"[1]\n", "내 글\n".encode(), "내 글, 줄 끝이 없다".encode()):
        output.write_bytes(held)
        with pytest.raises(ConfigError, match=r"holds something else"):
            answers(talker, prompts, output)
        assert output.read_bytes() == held


def test_records_have_a_prompt_or_messages(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    turns = [{"role": "system", "content": "짧게"}, {"role": "user", "content": "나"}]
    path.write_text(json.dumps({"prompt": "가"}) + "\n" + json.dumps({"messages": turns}), encoding="utf-8-sig")
    head = {"role": "system", "content": "길게"}
    found = [each["messages"] for each in read_prompts(path, system="길게", key="k")]
    assert found == [[head, {"role": "user", "content": "가"}], turns]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "\xea\xb0\x80"}\n{"text": "x"}\n', r"p.jsonl:2: is no prompt. Write"),
        (b"{\n", r"p.jsonl:1: is no prompt"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}\n', r"p.jsonl:1: is no prompt"),
        ('{"prompt": "가"}\n'.encode("cp949"), r"p.jsonl:1: is not UTF-8. Convert the file"),
        (b"\n\n", r"there is no prompt in it. Write one on each line"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(path, system=None, key="k")


def test_a_prompt_that_cannot_be_is_refused_before_the_first_is_answered(
    talker: Talker, prompts: Path, tmp_path: Path
) -> None:
    prompts.write_text(f"가\n{'가' * 1000}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2 of the input: the prompt has .* Shorten it"):
        answers(talker, prompts, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


# What is refused, in one line


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
    with pytest.raises(SystemExit) as stop:
        command.main(["mini", "--outputs", outputs, *arguments])
    shown = capsys.readouterr()
    (line,) = (line for line in shown.err.splitlines() if "error: " in line)
    assert (shown.out, stop.value.code) == ("", 2) and line.startswith(message)


def test_what_the_template_cannot_say_is_one_line(talker: Talker) -> None:
    said = r"the chat template of pretrain/mini-00000001 cannot say this conversation: the role tool is not system"
    with pytest.raises(ConfigError, match=said):
        talker.encode([{"role": "tool", "content": "x"}], SETTINGS)


def test_a_prompt_longer_than_the_room_says_what_would_help(talker: Talker) -> None:
    ids, _ = talker.encode(messages("가나" * 28), Sampling(max_new_tokens=1))
    assert ROOM < len(ids) < POSITIONS
    with pytest.raises(ConfigError, match=rf"has {len(ids)} tokens.*set max_new_tokens={POSITIONS - len(ids)} or less"):
        talker.encode(messages("가나" * 28), SETTINGS)
    with pytest.raises(ConfigError, match=r"there are 80 beside max_new_tokens=80\. Shorten it\.$"):
        talker.encode(messages("가" * POSITIONS), SETTINGS)


def test_an_adapter_is_refused_on_other_weights_than_its_own(outputs: str, tmp_path: Path) -> None:
    stale = shutil.copytree(find_model(outputs, "mini-00000002").path, tmp_path / "finetune" / "mini-00000002")
    identity = {"parents": {"base": "d0"}}
    record = json.loads((stale / "run.json").read_text(encoding="utf-8"))
    record |= {"identity": identity, "key": key_of(identity)}
    write_record(stale, record)
    with pytest.raises(DamagedError, match=r"was tuned on other weights than .*mini-00000001 holds now"):
        Talker(find_model(tmp_path, "mini"))
    write_record(stale, record | {"folders": {"base": "pretrain/gone"}})
    with pytest.raises(DamagedError, match=r"was tuned on .*pretrain/gone, which is gone: .*gone is no run: it has"):
        find_model(tmp_path, "mini")


def test_damaged_weights_are_named(outputs: str, tmp_path: Path) -> None:
    folder = shutil.copytree(find_model(outputs, "mini-00000001").path, tmp_path / "pretrain" / "mini-00000001")
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(DamagedError, match=r"model/model\.safetensors is not what run.json says. Make the"):
        Talker(find_model(tmp_path, str(folder)))
    weights.unlink()
    with pytest.raises(DamagedError, match=r"model/model\.safetensors is missing"):
        Talker(find_model(tmp_path, str(folder)))
