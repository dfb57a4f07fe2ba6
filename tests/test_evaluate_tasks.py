"""Tasks of lm-eval, on task files that the test writes; skipped where the extra is not installed."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra eval (lm-eval) is not installed")

from llm import model as models  # after the skip
from llm import tokenizer
from llm.config import EvaluationConfig, ModelConfig
from llm.config.training import Architecture
from llm.errors import ConfigError
from llm.evaluation import Scorer
from llm.evaluation.tasks import answer_tasks, require_tasks
from tests.korean import save_preset, sentences

pytestmark = pytest.mark.filterwarnings("default")  # of lm-eval and what it brings
QUESTIONS = [
    {"premise": text.rsplit(" ", 1)[0], "choices": [f"책을 {end}", "물을 먹었다."], "label": n % 2}
    for n, (text, end) in enumerate(zip(sentences(12), ["읽었다.", "썼다.", "불렀다."] * 4, strict=True))
]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder = save_preset("char_bpe", tmp_path_factory.mktemp("t"), vocab_size=500, initial_alphabet="none")
    torch.manual_seed(0)
    config = ModelConfig(name="tiny", architecture=Architecture.gpt2, num_layers=1, num_heads=2, hidden_size=16)
    words, special = tokenizer.load(folder), tokenizer.special(folder)
    model = models.build(config, vocab_size=words.get_vocab_size(), special=special).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return Scorer(model, words, special, positions=128, batch_tokens=500)


@pytest.fixture
def task_path(tmp_path: Path) -> Path:
    """A task of two choices, one whose answer is written, and one of the loss of whole texts."""
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(q, ensure_ascii=False) + "\n" for q in QUESTIONS), encoding="utf-8")
    head = f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {data}}}\ntest_split: test\n"
    choose = (
        "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: label\nmetric_list: [{metric: acc}]\n"
    )
    write = "output_type: generate_until\ndoc_to_target: premise\ngeneration_kwargs: {until: [다], max_gen_toks: 4}\n"
    write += "metric_list: [{metric: exact_match}]\n"
    text = (
        'output_type: loglikelihood_rolling\ndoc_to_target: "{{premise}}"\nmetric_list: [{metric: byte_perplexity}]\n'
    )
    for name, body, prompt in (("choose", choose, "{{premise}}"), ("write", write, "{{premise}}"), ("text", text, "")):
        path = tmp_path / f"mine_{name}.yaml"
        path.write_text(f'task: mine_{name}\n{head}{body}doc_to_text: "{prompt}"\n', encoding="utf-8")
    return tmp_path


def nats(scorer: Scorer, text: str, *, after: str = "") -> float:
    """What a text costs after another, one token after the other."""
    ids = scorer.encode(after + text)
    first = len(scorer.encode(after))
    assert ids[:first] == scorer.encode(after)  # this tokenizer joins nothing over a space
    with torch.no_grad():
        scores = torch.log_softmax(scorer.model(torch.tensor([ids])).logits[0].double(), -1)
    return -sum(float(scores[place - 1, ids[place]]) for place in range(first, len(ids)))


def test_a_task_of_choices_is_answered_by_the_cheapest(scorer: Scorer, task_path: Path) -> None:
    config = EvaluationConfig(tasks=["mine_choose"], task_path=str(task_path))
    costs = [[nats(scorer, f" {c}", after=q["premise"]) for c in q["choices"]] for q in QUESTIONS]
    right = [cost.index(min(cost)) == question["label"] for cost, question in zip(costs, QUESTIONS, strict=True)]
    found = answer_tasks(scorer, config, seed=0)
    assert found["mine_choose"]["acc"] == pytest.approx(sum(right) / len(right))
    assert 0 < sum(right) < len(right) and found["mine_choose"]["acc_stderr"] > 0


def test_a_task_of_texts_has_the_nats_of_its_bytes(scorer: Scorer, task_path: Path) -> None:
    found = answer_tasks(scorer, EvaluationConfig(tasks=["mine_text"], task_path=str(task_path)), seed=0)
    total = sum(nats(scorer, q["premise"]) for q in QUESTIONS)
    size = sum(len(q["premise"].encode()) for q in QUESTIONS)
    expected = float(torch.tensor(total / size).exp())
    assert found["mine_text"]["byte_perplexity"] == pytest.approx(expected, rel=1e-5)


def test_a_task_whose_answer_is_written_is_scored(scorer: Scorer, task_path: Path) -> None:
    config = EvaluationConfig(tasks=["mine_write"], task_path=str(task_path), task_limit=2)
    assert answer_tasks(scorer, config, seed=0)["mine_write"]["exact_match"] == 0.0


def test_a_task_that_lm_eval_does_not_know_is_one_line_with_the_nearest(task_path: Path) -> None:
    require_tasks(EvaluationConfig(tasks=["mine_choose", "kobest_copa"], task_path=str(task_path)))
    with pytest.raises(ConfigError, match=r"lm-eval has no task mine_chose. Did you mean mine_choose"):
        require_tasks(EvaluationConfig(tasks=["mine_chose"], task_path=str(task_path)))
