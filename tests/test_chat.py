"""Chat: a run is found, its answer streams, a conversation fits the model, and a mistake is one line."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

from llm import tokenizer
from llm.chat import Talker, command, open_talker, terminal
from llm.chat.terminal import Conversation, converse, say
from llm.config.sampling import Sampling
from llm.config.training import Architecture, ModelConfig
from llm.config.tuning import LoraConfig
from llm.errors import ConfigError, DamagedError
from llm.model import add_lora, build, generate, load, load_adapter, save
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


def talk(*talkers: Talker, system: str | None = None) -> Conversation:
    return Conversation(talkers, SETTINGS, system)


def answer_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    command.main([*arguments])
    return capsys.readouterr().out


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, list[str]]:
    """(exit code, the lines on stderr that are no status)"""
    with pytest.raises(SystemExit) as stop:
        command.main([*arguments])
    shown = capsys.readouterr()
    assert shown.out == ""
    return stop.value.code, [line for line in shown.err.splitlines() if "talking to" not in line]


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
    model = load_adapter(load(folder), Path(outputs) / "finetune" / "mini-00000002" / "adapter").eval()
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
    assert re.fullmatch(r"2 tokens, [\d,]+ tokens/s, the first after \d+\.\d\d s; cut at max-new-tokens", notes[2])


# The conversation


def test_a_conversation_keeps_what_was_said_until_new(talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[dict[str, str]]] = []

    def answer(_: Any, given: list[list[dict[str, str]]], __: Sampling) -> list[str]:
        asked.extend(given)
        return [f"답 {len(asked)}"]

    monkeypatch.setattr(terminal, "say", answer)
    converse(talk(talker), script("가", "  ", "나", "/new", "다", "/quit", "라"))
    assert asked == [messages("가"), messages("가", "답 1", "나"), messages("다")]


def test_the_end_of_input_ends_a_conversation(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    converse(talk(talker), script(QUESTION))
    assert capsys.readouterr().out == f"{ANSWER}\n\n"


def test_a_control_tokens_name_in_a_message_is_text(talker: Talker) -> None:
    said = [{"role": "system", "content": "<|endoftext|>"}, *messages("끝 <|endoftext|>질문", "<|endoftext|>", "또")]
    ids, _ = talker.encode(said, Sampling(max_new_tokens=4))
    assert [ids[0], ids.count(talker.eos_id)] == [talker.tokenizer.bos_token_id, 2]  # and the end of the one answer
    assert talker.tokenizer.backend_tokenizer.decode(ids).count("<|endoftext|>") == 3


def test_a_message_that_cannot_be_is_refused_and_the_conversation_goes_on(
    talker: Talker, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging()
    converse(talk(talker), script("가" * POSITIONS, QUESTION))
    shown = capsys.readouterr()
    assert shown.out == f"{ANSWER}\n\n"
    assert "Shorten it" in shown.err


def test_the_oldest_turns_are_left_out_of_what_is_too_long(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    start_logging()
    whole = messages(*["가나다라"] * 20, QUESTION)
    ids, left_out = talker.encode(whole, SETTINGS)
    kept = next(start for start in range(0, len(whole), 2) if len(talker._ids(whole[start:])) <= room(talker))
    assert 0 < kept < len(whole) - 1
    assert ids == talker._ids(whole[kept:]) and left_out == kept // 2
    next(talker.answer(whole, SETTINGS))
    assert f"the oldest {kept // 2} turns are left out: a prompt may have 80 tokens" in capsys.readouterr().err


def test_an_empty_answer_is_said_to_be_one(talker: Talker, capsys: pytest.CaptureFixture[str]) -> None:
    start_logging()
    silent = SimpleNamespace(name="silent", answer=lambda *_, **__: (piece for piece in ()))
    assert say([silent], [messages("가")], SETTINGS) == [""]  # type: ignore[list-item]  # a talker that says nothing
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


def test_the_system_prompt_stands_before_the_conversation_and_stays(
    talker: Talker, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging()
    seen: list[list[dict[str, str]]] = []
    watched = SimpleNamespace(
        name="t", answer=lambda given, *_, **__: (seen.append(given), (piece for piece in "답"))[1]
    )
    conversation = Conversation([watched], SETTINGS, "짧게")  # type: ignore[list-item]  # a talker that is watched
    converse(conversation, script("가", "/system 길게 말해", "나", "/system", "다", "/nwe"))
    head = [{"role": "system", "content": "짧게"}]
    assert seen[0] == [*head, *messages("가")]
    assert seen[1] == [{"role": "system", "content": "길게 말해"}, *messages("가", "답", "나")]
    assert seen[2] == messages("가", "답", "나", "답", "다")
    assert "there is no command /nwe. /new begins anew" in capsys.readouterr().err
    ids, left_out = talker.encode([*head, *messages(*["가나다라"] * 20, QUESTION)], SETTINGS)
    assert left_out and talker.tokenizer.backend_tokenizer.decode(ids).startswith("지시: 짧게\n질문: ")


def test_the_prompt_with_a_system_prompt_is_what_the_template_makes(
    outputs: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    own = Talker.answer
    monkeypatch.setattr(
        Talker, "answer", lambda self, given, *a, **k: (seen.append(given), own(self, given, *a, **k))[1]
    )
    answer_of(capsys, "mini", "--outputs", outputs, "--prompt", QUESTION, "--system", "짧게", *GREEDY)
    assert seen == [[{"role": "system", "content": "짧게"}, *messages(QUESTION)]]


def test_two_models_answer_one_after_the_other_under_their_names(
    outputs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--outputs", outputs, "--prompt", QUESTION, *GREEDY]
    tuned = answer_of(capsys, "mini-00000002", *given)
    both = answer_of(capsys, "mini-00000001", "--compare", "mini-00000002", *given)
    assert both == f"[pretrain/mini-00000001]\n{ANSWER}\n[finetune/mini-00000002]\n{tuned}"


def test_on_a_terminal_two_answers_stand_side_by_side(
    talker: Talker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    conversation = talk(talker, replace(talker, name="other"))
    assert conversation.ask(QUESTION) == [ANSWER, ANSWER]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4].count("pretrain/mini-00000001") == 1 and "other" in lines[-4]
    assert lines[-2].count(ANSWER) == 2  # what is left on the screen; the frames before it are drawn over
    assert [turn[-1]["content"] for turn in conversation.turns] == [ANSWER, ANSWER]


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


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}",
            "takes more than 2 s to render",
        ),
        ("{{ 'x' * 100000 }}", r"makes 100000 characters of a conversation that may have \d+"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ raise_exception('no system prompt') }}", "no system prompt"),
    ],
)
def test_a_hostile_template_of_a_folder_is_one_line(
    outputs: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    template: str,
    reason: str,
) -> None:
    shutil.copytree(Path(outputs) / "pretrain" / "mini-00000001" / "model", tmp_path / "mine")
    (tmp_path / "mine" / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / "mine"), "--prompt", QUESTION, *GREEDY])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert re.fullmatch(f"error: the chat template of .*mine cannot say this conversation: {reason}.*", said[0])


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


def test_a_folder_that_cannot_talk_says_what_it_lacks(outputs: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"is neither a run nor a model: it has no run.json, config.json or adapter_"):
        find_model(outputs, str(folder))
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine has no tokenizer.json. Put the model's tokenizer beside its weights"):
        find_model(outputs, str(folder))
    (folder / "config.json").write_text("{", encoding="utf-8")
    (folder / "tokenizer.json").touch()
    with pytest.raises(DamagedError, match=r"config.json cannot be read .* Put it back as it was"):
        find_model(outputs, str(folder))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "nowhere"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"is an adapter on nowhere, which is no folder with a config.json here"):
        find_model(outputs, str(folder))


def test_a_folder_without_weights_is_one_line(outputs: str, tmp_path: Path) -> None:
    shutil.copytree(Path(outputs) / "pretrain" / "mini-00000001" / "model", tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"mine does not hold a model's weights: model\.safetensors is mis[^\n]+$"):
        open_talker(find_model(outputs, str(tmp_path / "mine")))


# What is refused, in one line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["none", "--prompt", "가"],
            "there is no run none under OUT/. Runs: ",
        ),
        (["mini", "--prompt", " "], "the prompt is empty. Write one"),
        (["mini", "--prompt", "\udceb"], "the prompt is not UTF-8. Convert it"),
        (["mini", "--prompt", "가", "--top-p", "0"], "--top-p=0.0 is out of range. Set it above 0 and up to 1"),
        (["mini", "--prompt", "가", "--temperature", "-1"], "--temperature=-1.0 is out of range. Set it to 0 or more"),
        (["mini", "--prompt", "가", "--top-k", "-1"], "--top-k=-1 is out of range. Set it to 1 or more, or to 0"),
        (["mini", "--prompt", "가", "--repetition-penalty", "0"], "--repetition-penalty=0.0 is out of range"),
        (["mini", "--prompt", "가", "--seed", "-1"], "--seed=-1 is out of range. Set it from 0"),
        (["mini", "--prompt", "가", "--stop", ""], "--stop is out of range. Give up to 16 texts of 1 to 200 char"),
        (["mini", "--prompt", "가", "--system", "\udceb"], "the text of the system has half a character. Write it"),
        (["mini", "--prompt", "가", "--serve"], "--prompt and --serve are different ways to talk. Give one"),
        (["mini", "--input", "x"], "--input and --output go together"),
        (["mini", "--input", "x", "--output", "y", "--compare", "mini"], "--compare is for conversations"),
        (["mini", "--input", "x", "--output", "y", "--batch-size", "0"], "--batch-size=0 is out of range"),
        (["mini", "--input", "nowhere", "--output", "y"], "--input=nowhere is no file. Give a .txt"),
        (["mini", "--port", "1"], "--port=1 is of the page. Add --serve"),
        (["mini", "--serve", "--port", "65536"], "--port=65536 is out of range. Set it from 0 to 65535"),
        (["mini", "--compare", "none", "--prompt", "가"], "there is no run none under OUT/"),
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
    assert room(talker) < ids < talker.positions
    with pytest.raises(ConfigError, match=rf"has {ids} tokens.*set --max-new-tokens={POSITIONS - ids} or less\."):
        talker.encode(messages("가나" * 28), SETTINGS)
    with pytest.raises(ConfigError, match=r"there are 80 beside --max-new-tokens=80\. Shorten it\.$"):
        talker.encode(messages("가" * POSITIONS), SETTINGS)
    with pytest.raises(ConfigError, match=r"has 350,000 characters, which is more than a model of 160 tokens can read"):
        talker.encode(messages("가" * 350_000), SETTINGS)


# The run


def test_a_name_means_the_tuned_run_where_both_stages_have_it(outputs: str) -> None:
    assert find_model(outputs, "mini").path.name == "mini-00000002"
    assert find_model(outputs, f"{outputs}/pretrain/mini-00000001").path.name == "mini-00000001"


def test_a_run_that_is_not_done_is_passed_over_for_one_that_is(tmp_path: Path) -> None:
    write_run(tmp_path / "pretrain" / "a-00000001", name="a")
    write_run(tmp_path / "finetune" / "a-00000002", name="a", status="failed")
    assert find_model(str(tmp_path), "a").path.name == "a-00000001"
    with pytest.raises(ConfigError, match="a-00000002 is failed, not done"):
        find_model(str(tmp_path), "a-00000002")


def test_an_ambiguous_name_lists_the_runs(tmp_path: Path) -> None:
    for key in ("00000001", "00000002"):
        write_run(tmp_path / "pretrain" / f"a-{key}", name="a")
    with pytest.raises(ConfigError, match=r"a means 2 runs: .*a-00000001, .*a-00000002\. Give one"):
        find_model(str(tmp_path), "a")


def test_a_tokenizer_cannot_talk(tmp_path: Path) -> None:
    write_run(tmp_path / "tokenizer" / "a-00000001", name="a")
    with pytest.raises(
        ConfigError, match=r"is a tokenizer run, but a pretrain or finetune run is needed\. There is no finished pre"
    ):
        find_model(str(tmp_path), "tokenizer/a-00000001")
    with pytest.raises(
        ConfigError, match=r"There is no finished pretrain or finetune run yet: make one with python train\.py stage=pr"
    ):
        find_model(str(tmp_path / "elsewhere"), "a")


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
