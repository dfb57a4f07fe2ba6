"""An outputs folder that was moved or copied, seen from another working directory: all that reads it or goes on."""

import shutil
from pathlib import Path

import pytest

from llm import verify
from llm.chat import command as chat
from llm.compare.command import main as compare
from llm.run.runs import load
from llm.sync import find
from tests.korean import documents
from tests.test_stages import _quick_peak, run
from tests.tuned import folder_of, train_first, tuning_on

__all__ = ["_quick_peak"]  # a fixture that every test here takes too

EVALUATION = ["evaluation.num_items=20", "evaluation.num_prompts=2", "evaluation.max_new_tokens=4", "logger=local"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a chain was made in, by a command that named everything from there."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_first(Path(), documents(200), words=["tokenizer=byte_bpe", "model=llama_tiny"])
    return folder


@pytest.fixture
def outputs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The chain's outputs copied elsewhere, named from a working directory that has no outputs folder of its own."""
    shutil.copytree(made / "outputs", tmp_path / "here" / "elsewhere")
    for path in (made / "outputs").glob("*/*/run.json"):  # the copy does not lean on what it is a copy of
        path.write_text("{", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    return Path("elsewhere")


def test_everything_reads_and_goes_on_with_outputs_elsewhere(
    outputs: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, origin = f"outputs={outputs}", made
    tuned = folder_of(outputs, "finetune")

    verify.main(["finetune/*", "--outputs", str(outputs)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["done"] * 5
    assert {Path(line.split()[1]).parent.parent for line in lines} == {outputs}

    chat.main(["first", "--outputs", str(outputs), "--prompt", "누구인가요?", "--max-new-tokens", "4"])
    chat.main([str(tuned / "adapter"), "--prompt", "누구인가요?", "--max-new-tokens", "4"])
    compare(["pretrain/*", "finetune/*", "--outputs", str(outputs), "--html", "page.html"])
    assert find(outputs) == ([], 0)  # they were made with logger=local

    before = {path: path.stat().st_mtime_ns for path in outputs.glob("*/*/run.json")}
    exported = run("export", where, "run=first")
    assert load(exported.path).parent("run").path == tuned
    evaluated = run("evaluate", where, "run=first", *EVALUATION)
    assert evaluated.results
    chats, text = origin / "chats.jsonl", origin / "text.jsonl"
    again = run("finetune", *tuning_on(chats), where, "base=first", "name=second")
    assert again.digest == load(tuned).digest  # wherever its base lies
    assert again.record["folders"] == {"base": f"pretrain/{folder_of(outputs, 'pretrain').name}"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert text.exists()
