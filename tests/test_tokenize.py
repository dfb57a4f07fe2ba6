"""python -m llm.tokenize: the pieces of a text under several runs' tokenizers, and what the runs measured."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from llm import tokenize
from llm.config.data import DataConfig, DataKind
from llm.config.stages import TokenizerStage
from llm.config.tokenizer import TokenizerConfig
from llm.errors import ConfigError, DataError
from llm.run.runs import Run
from llm.stage import run_stage
from llm.tokenizer.folder import load_tokenizer
from llm.tokenizer.report import FIGURES
from llm.tokenizer.training import train
from tests.korean import documents, preset, save_preset

SIZES = {"blog": 600, "byte_bpe": 700, "char_bpe": 3000}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a finished tokenizer run of each preset lies, named after it."""
    folder = tmp_path_factory.mktemp("tokenize")
    (folder / "text.txt").write_text("\n\n".join(documents(100)), encoding="utf-8")
    for name, size in SIZES.items():
        make(folder, preset(name, vocab_size=size), name=name)
    return folder / "outputs"


def make(folder: Path, config: TokenizerConfig, *, name: str, held_out_share: float = 0.1) -> Run:
    path = str(folder / "text.txt")
    data = DataConfig(name="text", kind=DataKind.text, path=path, held_out_share=held_out_share)
    outputs = str(folder / "outputs")
    return run_stage(TokenizerStage(stage="tokenizer", name=name, outputs=outputs, tokenizer=config, data=data))


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    tokenize.main([*words])
    return capsys.readouterr().out


def rows(table: str) -> dict[str, list[str]]:
    """The first cell of each row -> the others."""
    cells = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in table.splitlines() if "│" in line]
    return {first: rest for first, *rest in cells}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        tokenize.main([*words])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_the_pieces_of_every_run_stand_side_by_side(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(shown(capsys, "blog", "byte_bpe", "char_bpe", "나는 오늘", "--outputs", str(outputs)))
    assert [name.split("-")[0] for name in found] == ["blog", "byte_bpe", "char_bpe"]
    assert [cells for cells in found.values()] == [
        ["2", "나는|오늘", ""],
        ["2", "나는|▁오늘", ""],
        ["2", "나는|▁오늘", ""],
    ]


def test_what_a_tokenizer_loses_stands_beside_its_pieces(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(shown(capsys, "blog", "char_bpe", "나는 뷁\n오늘", "--outputs", str(outputs)))
    blog, char = found.values()
    assert blog == ["2", "나는|오늘", "뷁⏎"]
    assert char[2] == "" and char[1].startswith("나는|▁|<0xEB>|<0xB7>|<0x81>|⏎|")


def test_bytes_that_are_no_character_are_shown_as_hex_and_letters_as_letters(outputs: Path) -> None:
    byte_level = load_tokenizer(next(outputs.glob("tokenizer/byte_bpe-*")))
    assert "".join(piece for piece, _ in tokenize.pieces(byte_level, "뷁")) == "<eb><b7><81>"
    assert [piece for piece, _ in tokenize.pieces(byte_level, "\n\t")] == ["⏎", "⇥"]
    jamo = train(preset("jamo", vocab_size=600, decoder="Fuse"), iter(documents(50)))
    assert "".join(piece for piece, _ in tokenize.pieces(jamo, "나는 오늘")) == "나는▁오늘"


def test_the_unknown_token_is_marked() -> None:
    bert = train(preset("bert_wordpiece", vocab_size=600), iter(documents(300)))
    assert tokenize.pieces(bert, "나는 뷁") == [("나는", False), ("[UNK]", True)]
    line = tokenize._coloured(tokenize.pieces(bert, "나는 뷁"))
    assert [str(span.style) for span in line.spans] == ["black on #7cc4ff", f"black on {tokenize.UNKNOWN_COLOUR}"]
    assert line.plain == "나는[UNK]"


def test_a_terminal_shows_colours_and_a_pipe_bars(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = tokenize.find_tokenizers(str(outputs), ["byte_bpe"])
    console = Console(force_terminal=True, color_system="truecolor", width=100)
    console.print(tokenize.table_of_pieces(named, "나는 오늘", coloured=True))
    coloured = capsys.readouterr().out
    assert "48;2;124;196;255m나는" in coloured and "48;2;255;209;102m▁오늘" in coloured
    assert "\x1b" not in shown(capsys, "byte_bpe", "나는", "--outputs", str(outputs))


def test_the_report_has_every_number_of_every_run(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "numbers.json"
    said = shown(capsys, "blog", "char_bpe", "--report", "--outputs", str(outputs), "--json", str(told))
    found, numbers = rows(said), json.loads(told.read_text(encoding="utf-8"))
    assert list(found) == list(FIGURES.values())
    assert all(len(cells) == 2 for cells in found.values())
    assert "not measured on the same" not in said
    for name, by_place in numbers.items():
        run = json.loads((outputs / "tokenizer" / name / "run.json").read_text(encoding="utf-8"))
        assert by_place == {"held-out": run["results"]}
    assert found["documents lossless"][1] == "1.0000" and float(found["documents lossless"][0]) < 1


def test_other_text_is_measured_beside_the_held_out(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, told = tmp_path / "other.txt", tmp_path / "numbers.json"
    other.write_text("大韓民國 支援\n\n뷁 λόγος", encoding="utf-8")
    said = shown(capsys, "char_bpe", "--report", "--on", str(other), "--outputs", str(outputs), "--json", str(told))
    [by_place] = json.loads(told.read_text(encoding="utf-8")).values()
    assert list(by_place) == ["held-out", str(other)]
    assert (by_place[str(other)]["documents"], by_place[str(other)]["lossless_documents"]) == (2, 1)
    assert " / " in rows(said)["tokens per eojeol"][0]


def test_runs_of_different_held_out_text_are_told_apart(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(outputs.parent, preset("byte_bpe", vocab_size=300), name="other", held_out_share=0.2)
    said = shown(capsys, "byte_bpe", "other", "--report", "--outputs", str(outputs))
    assert "They were not measured on the same held-out text. Give one text to all with --on." in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["나는"], 'error: give runs and then a text, "문장"'),
        (["nothing", "나는"], "there is no run nothing under"),
        (["blog", "나는", "--json", "x"], "or runs and --report, which --on and --json go with"),
    ],
)
def test_a_wrong_use_is_one_line(
    outputs: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    said = refused(capsys, *words, "--outputs", str(outputs))
    assert message in said and said.count("error: ") == 1


def test_a_run_without_a_tokenizer_or_a_report_is_refused(outputs: Path, tmp_path: Path) -> None:
    for stage_name in ("shards", "pretrain"):
        folder = tmp_path / stage_name / f"{stage_name}-00000000"
        save_preset("byte_bpe", folder / "model", vocab_size=300)
        record = {"stage": stage_name, "name": stage_name, "key": "00000000", "status": "done"}
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"shards has no finished run with a tokenizer. Make one with"):
        tokenize.find_tokenizers(str(tmp_path), ["shards"])
    named = tokenize.find_tokenizers(str(tmp_path), ["pretrain"])
    assert tokenize.pieces(named[0].tokenizer, "\n") == [("⏎", False)]
    with pytest.raises(
        ConfigError, match=r"pretrain-00000000 is a pretrain run, which has no report. Give its tokenizer's run"
    ):
        tokenize.reports(named, None)


def test_a_bad_record_of_other_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"title": "글"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r'bad.jsonl:1: field "text" is missing'):
        list(tokenize.texts(str(tmp_path / "bad.jsonl")))
