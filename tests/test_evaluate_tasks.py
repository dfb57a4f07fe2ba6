"""Tasks of lm-eval, on task files that the test writes; skipped where the extra is not installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra eval (lm-eval) is not installed")

from llm import model as models  # after the skip
from llm.config.evaluation import EvaluationConfig
from llm.config.training import Architecture, ModelConfig
from llm.errors import ConfigError
from llm.evaluation.scoring import Scorer
from llm.evaluation.tasks import ShortModel, answer_tasks, require_tasks
from llm.export.weights import write_tokenizer
from llm.tokenizer.folder import load_tokenizer, read_special
from tests.korean import save_preset, sentences

pytestmark = pytest.mark.filterwarnings("default")  # of lm-eval and what it brings
QUESTIONS = [
    {"premise": text.rsplit(" ", 1)[0], "choices": [f"책을 {end}", "물을 먹었다."], "label": n % 2}
    for n, (text, end) in enumerate(zip(sentences(12), ["읽었다.", "썼다.", "불렀다."] * 4, strict=True))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_preset("char_bpe", tmp_path_factory.mktemp("t"), vocab_size=500, initial_alphabet="none")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    torch.manual_seed(0)
    config = ModelConfig(name="tiny", architecture=Architecture.gpt2, num_layers=1, num_heads=2, hidden_size=16)
    words, special = load_tokenizer(folder), read_special(folder)
    model = models.build(config, vocab_size=words.get_vocab_size(), special=special).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return Scorer(model, words, special, positions=128, batch_tokens=500)


@pytest.fixture
def task_path(tmp_path: Path) -> Path:
    """A task of two choices, one whose answer is written, and one of the loss of ends of texts."""
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(q, ensure_ascii=False) + "\n" for q in QUESTIONS), encoding="utf-8")
    head = f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {data}}}\ntest_split: test\n"
    head += 'doc_to_text: "{{premise}}"\n'
    choose = (
        "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: label\nmetric_list: [{metric: acc}]\n"
    )
    write = "output_type: generate_until\ndoc_to_target: premise\ngeneration_kwargs: {until: [다], max_gen_toks: 4}\n"
    write += "metric_list: [{metric: exact_match}]\n"
    last = 'output_type: loglikelihood\ndoc_to_target: " {{choices[0]}}"\nmetric_list: [{metric: perplexity}]\n'
    for name, body in {"choose": choose, "write": write, "last": last}.items():
        (tmp_path / f"mine_{name}.yaml").write_text(f"task: mine_{name}\n{head}{body}", encoding="utf-8")
    return tmp_path


def test_a_task_that_lm_eval_does_not_know_is_one_line_with_the_nearest(task_path: Path) -> None:
    require_tasks(EvaluationConfig(tasks=["mine_choose", "kobest_copa"], task_path=str(task_path)))
    with pytest.raises(ConfigError, match=r"lm-eval has no task mine_chose. Did you mean mine_choose"):
        require_tasks(EvaluationConfig(tasks=["mine_chose"], task_path=str(task_path)))


@pytest.mark.parametrize("has_chat", [True, False], ids=["chat", "plain"])
def test_figures_are_those_of_lm_evals_own_command_line_on_the_exported_folder(
    has_chat: bool, scorer: Scorer, folder: Path, task_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = tmp_path / "model"
    models.save(scorer.model, exported)
    write_tokenizer(folder, exported, positions=scorer.positions)
    tasks = ["mine_choose", "mine_last", "mine_write"]
    config = EvaluationConfig(tasks=tasks, task_path=str(task_path), num_fewshot=1, batch_tokens=4 * scorer.positions)
    written: list[str] = []
    write = ShortModel.generate_until
    monkeypatch.setattr(
        ShortModel, "generate_until", lambda *given, **more: written.extend(write(*given, **more)) or written
    )
    found = answer_tasks(scorer, folder, config, has_chat=has_chat, seed=0)
    given = f"pretrained={exported},dtype=float32,add_bos_token=True,max_length={scorer.positions}"
    asked = ["--tasks", ",".join(tasks), "--include_path", str(task_path), "--num_fewshot", "1", "--seed", "0"]
    way = ["--model", "hf", "--model_args", given, "--device", "cpu", "--batch_size", "1"]
    words = ["run", *way, *asked, "--output_path", str(tmp_path / "said"), "--log_samples"]
    words += ["--apply_chat_template"] * has_chat
    subprocess.run([sys.executable, "-m", "lm_eval", *words], check=True, cwd=tmp_path)
    (said,) = (tmp_path / "said").rglob("results_*.json")
    theirs = json.loads(said.read_text(encoding="utf-8"))["results"]
    for task, metric in (("mine_choose", "acc"), ("mine_last", "perplexity"), ("mine_write", "exact_match")):
        assert found[task][metric] == pytest.approx(theirs[task][f"{metric},none"], rel=1e-5), task
    (samples,) = (tmp_path / "said").rglob("samples_mine_write_*.jsonl")
    lines = sorted(map(json.loads, samples.read_text(encoding="utf-8").splitlines()), key=lambda line: line["doc_id"])
    assert written == [line["resps"][0][0] for line in lines]
    assert found["mine_last"]["perplexity"] > 1 and any(written) and found["mine_choose"]["acc_stderr"] > 0
