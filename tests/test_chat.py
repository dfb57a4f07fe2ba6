"""Chat: a run is found, its answer streams, a conversation fits the model, and a mistake is one line."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from llm import chat, tokenizer
from llm.chat import Talker, converse, find_run, open_talker, say
from llm.config import Architecture, LoraConfig, ModelConfig
from llm.errors import ConfigError, DamagedError
from llm.model import Sampling, add_lora, build, generate, load, load_adapter, save
from llm.run import Run
from llm.run import load as load_run
from llm.run.manifest import list_files
from tests.korean import save_preset

QUESTION = "주권은 누구에게 있나요?"
ANSWER = "대한민국의 주권은 국민에게 있다. 뷁!"  # a byte-level token is a part of a syllable
POSITIONS = 160
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
        identity={"parents": {"base": "d1"}},
    )
    adapted = add_lora(model, LoraConfig(rank=2), Architecture.gpt2)
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
    sampling = Sampling(max_new_tokens=80)
    return open_talker(find_run(outputs, "mini-00000001"), sampling)


def answer_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    chat.main([*arguments])
    return capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, list[str]]:
    """(exit code, the lines on stderr that are no status)"""
    with pytest.raises(SystemExit) as stop:
        chat.main([*arguments])
    shown = capsys.readouterr()
    assert shown.out == ""
    return stop.value.code, [line for line in shown.err.splitlines() if "talking to" not in line]


# The answer


def test_the_base_model_says_what_it_learned(outputs: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = answer_of(capsys, "mini-00000001", "--outputs", outputs, "--prompt", QUESTION, *GREEDY)
    assert answer == ANSWER + "\n"


def test_the_answer_comes_in_pieces_of_whole_syllables(talker: Talker) -> None:
    pieces = list(talker.answer(messages(QUESTION)))
    assert "".join(pieces) == " " + ANSWER
    assert len(pieces) > 10
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_tuned_model_answers_with_its_adapter(outputs: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(outputs) / "pretrain" / "mini-00000001" / "model"
    model = load_adapter(load(folder), Path(outputs) / "finetune" / "mini-00000002" / "adapter").eval()
    ids = tokenizer.load_chat(folder).apply_chat_template(messages(QUESTION), tokenize=True, return_dict=True)
    sampling = Sampling(max_new_tokens=12, temperature=0.7, seed=3)
    expected = generate(model, ids["input_ids"], tokenizer.load(folder), sampling=sampling, pad_id=0)
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
    assert notes == [
        "mini is a pretrained and a fine-tuned run; the fine-tuned one answers",
        f"talking to {outputs}/finetune/mini-00000002",
    ]


# The conversation


def test_a_conversation_keeps_what_was_said_until_new(
    talker: Talker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[dict[str, str]]] = []

    def answer(_: Talker, given: list[dict[str, str]]) -> str:
        asked.append(given)
        return f"답 {len(asked)}"

    monkeypatch.setattr(chat, "say", answer)
    converse(talker, script("가", "  ", "나", "/new", "다", "/quit", "라"))
    assert asked == [messages("가"), messages("가", "답 1", "나"), messages("다")]


def test_the_end_of_input_ends_a_conversation(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    converse(talker, script(QUESTION))
    assert capsys.readouterr().out == f"{ANSWER}\n\n"


def test_a_message_that_cannot_be_is_refused_and_the_conversation_goes_on(
    talker: Talker, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.start_logging()
    converse(talker, script("끝 <|endoftext|>", "가" * POSITIONS, QUESTION))
    shown = capsys.readouterr()
    assert shown.out == f"{ANSWER}\n\n"
    assert "<|endoftext|> is a special token of the model" in shown.err
    assert "Shorten it" in shown.err


def test_the_oldest_turns_are_left_out_of_what_is_too_long(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    chat.start_logging()
    whole = messages(*["가나다라"] * 20, QUESTION)
    ids = talker.encode(whole)
    kept = next(start for start in range(0, len(whole), 2) if len(talker._ids(whole[start:])) <= talker.room)
    assert 0 < kept < len(whole) - 1
    assert ids == talker._ids(whole[kept:])
    assert f"the oldest {kept // 2} turns are left out: a prompt may have 80 tokens" in capsys.readouterr().err


def test_an_empty_answer_is_said_to_be_one(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    chat.start_logging()
    silent = SimpleNamespace(answer=lambda _: iter(()))
    assert say(silent, messages("가")) == ""  # type: ignore[arg-type]  # a talker that says nothing
    assert "the model ended its answer at once" in capsys.readouterr().err


def script(*lines: str) -> Any:
    """What input() gives, line by line, and then the end."""
    rest: Iterator[str] = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    return read


# What is refused, in one line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["none", "--prompt", "가"],
            "there is no pretrain or finetune run none under OUT/. Finished ones: finetune/mini",
        ),
        (["mini", "--prompt", " "], "the prompt is empty. Write one"),
        (["mini", "--prompt", "\udceb"], "the prompt is not UTF-8. Convert it"),
        (["mini", "--prompt", "<|endoftext|>"], "<|endoftext|> is a special token of the model and cannot stand in a"),
        (["mini", "--prompt", "가", "--top-p", "0"], "--top-p=0.0 is out of range. Set it above 0 and up to 1"),
        (["mini", "--prompt", "가", "--temperature", "-1"], "--temperature=-1.0 is out of range. Set it to 0 or more"),
        (["mini", "--prompt", "가", "--max-new-tokens", "0"], "--max-new-tokens=0 is out of range"),
        (
            ["mini", "--prompt", "가", "--max-new-tokens", "160"],
            "--max-new-tokens=160 is out of range: prompt and answer share 160 tokens in mini-00000002. Set it to 80",
        ),
    ],
)
def test_a_mistake_is_one_line(
    outputs: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, lines = error_of(capsys, "--outputs", outputs, *arguments)
    assert code == 2
    assert lines[-1].startswith(f"error: {message.replace('OUT', outputs)}")
    assert sum(line.startswith("error:") for line in lines) == 1


def test_a_prompt_longer_than_the_room_says_what_would_help(talker: Talker) -> None:
    ids = len(talker._ids(messages("가나" * 28)))
    assert talker.room < ids < talker.positions
    with pytest.raises(ConfigError, match=rf"has {ids} tokens.*set --max-new-tokens={POSITIONS - ids} or less\."):
        talker.encode(messages("가나" * 28))
    with pytest.raises(ConfigError, match=r"there are 80 beside --max-new-tokens=80\. Shorten it\.$"):
        talker.encode(messages("가" * POSITIONS))


# The run


def test_a_name_means_the_tuned_run_where_both_stages_have_it(outputs: str) -> None:
    assert find_run(outputs, "mini").path.name == "mini-00000002"
    assert find_run(outputs, f"{outputs}/pretrain/mini-00000001").path.name == "mini-00000001"


def test_a_run_that_is_not_done_is_passed_over_for_one_that_is(tmp_path: Path) -> None:
    write_run(tmp_path / "pretrain" / "a-00000001", name="a")
    write_run(tmp_path / "finetune" / "a-00000002", name="a", status="failed")
    assert find_run(str(tmp_path), "a").path.name == "a-00000001"
    with pytest.raises(ConfigError, match="a-00000002 is failed, not done"):
        find_run(str(tmp_path), "a-00000002")


def test_an_ambiguous_name_lists_the_runs(tmp_path: Path) -> None:
    for key in ("00000001", "00000002"):
        write_run(tmp_path / "pretrain" / f"a-{key}", name="a")
    with pytest.raises(ConfigError, match=r"2 pretrain runs are named a: .*a-00000001, .*a-00000002\. Give one"):
        find_run(str(tmp_path), "a")


def test_a_tokenizer_cannot_talk(tmp_path: Path) -> None:
    write_run(tmp_path / "tokenizer" / "a-00000001", name="a")
    with pytest.raises(ConfigError, match=r"is a tokenizer run\. Only pretrain and finetune runs can talk"):
        find_run(str(tmp_path), "tokenizer/a-00000001")
    with pytest.raises(ConfigError, match=r"There is none yet: make one with python train\.py"):
        find_run(str(tmp_path), "a")


def test_an_adapter_is_refused_on_other_weights_than_its_own(outputs: str) -> None:
    tuned = find_run(outputs, "mini-00000002")
    stale = Run(tuned.path, tuned.record | {"identity": {"parents": {"base": "d0"}}})
    with pytest.raises(DamagedError, match=r"was tuned on other weights than .*mini-00000001 holds now"):
        open_talker(stale, Sampling())


def test_missing_weights_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "pretrain" / "a-00000001", name="a")
    (folder / "model").mkdir()
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(b"0123")
    seal(folder)
    weights.write_bytes(b"0124")
    with pytest.raises(DamagedError, match=r"model/model\.safetensors is not what run.json says. Make the"):
        open_talker(load_run(folder), Sampling())
    weights.unlink()
    with pytest.raises(DamagedError, match=r"model/model\.safetensors is missing"):
        open_talker(load_run(folder), Sampling())
