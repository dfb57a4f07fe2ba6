"""Generation: rows written together are what each is alone, draws follow the scores, and an answer knows its end."""

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from llm import tokenizer
from llm.config.sampling import Sampling
from llm.config.tokenizer import Alphabet
from llm.config.training import Architecture, ModelConfig
from llm.model import Answer, build, generate, stream
from llm.model.generation import _draw_of, drawn, penalised
from llm.tokenizer import Special
from tests.korean import save_preset

GREEDY = Sampling(max_new_tokens=20)
DRAWN = Sampling(max_new_tokens=20, temperature=1.3, top_p=0.9, top_k=40, repetition_penalty=1.4)
PROMPTS = ["나는", "오늘 학교에서 책을", "그", "선생님은 아침에 마당에서 사진을 찍었다. 그리고"]
SEEDS = [11, 5, 2**40, 0]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return tokenizer.load(save_preset("char_bpe", folder, vocab_size=400, initial_alphabet=Alphabet.none))


def model_of(architecture: Architecture, *, pad_id: int = 1) -> PreTrainedModel:
    """Random weights, so large that it says many things."""
    torch.manual_seed(0)
    config = ModelConfig(
        name="t",
        architecture=architecture,
        num_layers=2,
        num_heads=2,
        hidden_size=16,
        max_position_embeddings=64,
    )
    special = Special(bos_id=0, eos_id=0, pad_id=pad_id, tokens=("<|endoftext|>",))
    model = build(config, vocab_size=400, special=special).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def encoded(words: Tokenizer) -> list[list[int]]:
    return [[0, *words.encode(text, add_special_tokens=False).ids] for text in PROMPTS]


@pytest.mark.parametrize("pad_id", [1, 0], ids=["pad", "pad is eos"])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("architecture", [Architecture.gpt2, Architecture.llama], ids=lambda a: a.value)
def test_prompts_written_together_are_what_each_is_alone(
    words: Tokenizer, architecture: Architecture, sampling: Sampling, pad_id: int
) -> None:
    model = model_of(architecture, pad_id=pad_id)
    prompts = encoded(words)
    assert len({len(ids) for ids in prompts}) > 2
    together = generate(model, prompts, words, sampling=sampling, pad_id=pad_id, seeds=SEEDS)
    alone = [
        generate(model, [ids], words, sampling=sampling, pad_id=pad_id, seeds=[seed])[0]
        for ids, seed in zip(prompts, SEEDS, strict=True)
    ]
    assert together == alone
    assert len({answer.text for answer in together}) == len(PROMPTS)


def test_a_row_is_written_as_a_loop_without_a_cache_writes_it(words: Tokenizer) -> None:
    model = model_of(Architecture.llama)
    for prompt, answer in zip(
        encoded(words),
        generate(model, encoded(words), words, sampling=GREEDY, pad_id=1, seeds=SEEDS),
        strict=True,
    ):
        ids = list(prompt)
        for _ in range(20):
            with torch.no_grad():
                scores = model(torch.tensor([ids]), use_cache=False).logits[0, -1].clone()
            for token in set(ids) - {0}:
                scores[token] = scores[token] * 1.1 if scores[token] < 0 else scores[token] / 1.1
            ids.append(int(scores.argmax()))
            if ids[-1] == 0:
                break
        assert answer.num_tokens == len(ids) - len(prompt)
        text = words.decode(ids)[len(words.decode(prompt)) :]
        assert answer.text == (text.rstrip("\ufffd") if answer.end == "length" else text)


def test_draws_come_as_often_as_their_probability(words: Tokenizer) -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    scores = probabilities.log().expand(2, -1)
    chosen = torch.stack([drawn(scores, generators).argmax(1) for _ in range(4000)])
    for row in (0, 1):
        shares = torch.bincount(chosen[:, row], minlength=5) / 4000
        assert torch.allclose(shares, probabilities, atol=0.03)  # 4 standard deviations of a half
        assert shares[4] == 0
    assert not torch.equal(chosen[:, 0], chosen[:, 1])


def test_the_penalty_is_the_librarys() -> None:
    ids, scores = torch.tensor([[3, 4, 3]]), torch.linspace(-2, 2, 10)[None]
    seen = torch.zeros(1, 10, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(1.5)(ids, scores.clone())
    assert torch.equal(penalised(scores, seen, 1.5), expected)


def test_the_length_of_a_neighbour_takes_no_token_from_an_answer(words: Tokenizer) -> None:
    model = model_of(Architecture.gpt2)  # 64 positions
    model.generation_config.eos_token_id = None
    prompts, sampling = [[5] * 60, [5, 6], [7] * 40], Sampling(max_new_tokens=50)
    together = generate(model, prompts, words, sampling=sampling, pad_id=1)
    assert [answer.num_tokens for answer in together] == [32, 50, 32]
    assert together == [generate(model, [ids], words, sampling=sampling, pad_id=1)[0] for ids in prompts]
    assert together == generate(model, prompts, words, sampling=sampling, pad_id=1, batch_size=2)


def test_one_seed_draws_one_text_of_a_prompt_and_independent_ones_of_others(words: Tokenizer) -> None:
    model, prompts = model_of(Architecture.llama), encoded(words)
    together = generate(model, prompts, words, sampling=DRAWN, pad_id=1)
    for ids, answer in zip(prompts, together, strict=True):
        assert "".join(stream(model, ids, words, sampling=DRAWN, pad_id=1)) == answer.text
        again = generate(model, [ids], words, sampling=replace(DRAWN, seed=1), pad_id=1)
        assert again != [answer] and again == generate(model, [ids], words, sampling=DRAWN, pad_id=1, seeds=[1])
    flat = torch.zeros(2, 400)
    first, second = (drawn(flat, [torch.Generator().manual_seed(_draw_of(0, ids))] * 2) for ids in prompts[:2])
    assert abs(float(torch.corrcoef(torch.stack([first[0], second[0]]))[0, 1])) < 0.2


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_stop_string_ends_the_text_before_it(words: Tokenizer, sampling: Sampling) -> None:
    model = model_of(Architecture.llama)
    model.generation_config.eos_token_id = None
    prompt = encoded(words)[1]
    whole = generate(model, [prompt], words, sampling=sampling, pad_id=1)[0].text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    steps: list[int] = []
    model.register_forward_hook(lambda *_: steps.append(1))
    stopped = replace(sampling, stop=("없는 글", stop))
    (answer,) = generate(model, [prompt], words, sampling=stopped, pad_id=1, seeds=[sampling.seed])
    assert answer.text == whole[: whole.index(stop)] and answer.end == "stop"
    assert len(steps) == answer.num_tokens < 20
    pace = Answer()
    pieces = list(stream(model, prompt, words, sampling=stopped, pad_id=1, answer=pace))
    assert "".join(pieces) == answer.text and pace.end == "stop"


def test_another_end_of_a_tokenizer_ends_a_text_too(words: Tokenizer) -> None:
    model = model_of(Architecture.llama)
    prompt = encoded(words)[1]
    whole = generate(model, [prompt], words, sampling=GREEDY, pad_id=1, seeds=[0])[0]
    ids = [int(i) for i in words.encode(whole.text, add_special_tokens=False).ids]
    (answer,) = generate(model, [prompt], words, sampling=GREEDY, pad_id=1, seeds=[0], eos_ids=[ids[2]])
    assert answer.end == "eos" and answer.num_tokens < whole.num_tokens


def test_generation_reads_each_token_once(words: Tokenizer) -> None:
    model = model_of(Architecture.gpt2)
    widths: list[int] = []
    model.register_forward_hook(
        lambda _module, _args, kwargs, _output: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    model.generation_config.eos_token_id = None
    generate(model, [encoded(words)[3]], words, sampling=GREEDY, pad_id=1)
    assert widths == [len(encoded(words)[3]), *[1] * 19]  # the rest comes from the cache
