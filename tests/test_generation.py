"""Generation: rows written together are what each is alone, draws follow the scores, and an answer knows its end."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from llm.config.evaluation import Sampling
from llm.config.tokenizer import Alphabet
from llm.config.training import Architecture
from llm.model import Answer, generate, stream
from llm.model.generation import _draw_of, drawn
from llm.tokenizer.folder import load_tokenizer
from tests.korean import save_preset
from tests.models import small_model

GREEDY = Sampling(max_new_tokens=20)
DRAWN = Sampling(max_new_tokens=20, temperature=1.3, top_p=0.9, top_k=40, repetition_penalty=1.4)
PROMPTS = ["나는", "오늘 학교에서 책을", "그", "선생님은 아침에 마당에서 사진을 찍었다. 그리고"]
SEEDS = [11, 5, 2**40, 0]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return load_tokenizer(save_preset("char_bpe", folder, vocab_size=400, initial_alphabet=Alphabet.none))


def model_of(architecture: Architecture, *, noise: float = 0.3) -> Any:
    """Weights so large that it says many things."""
    return small_model(architecture, vocab_size=400, noise=noise).eval()


def encoded(words: Tokenizer) -> list[list[int]]:
    return [[0, *words.encode(text, add_special_tokens=False).ids] for text in PROMPTS]


@pytest.mark.parametrize(
    ("architecture", "sampling", "pad_id"),
    [(Architecture.gpt2, GREEDY, 0), (Architecture.gpt2, DRAWN, 1), (Architecture.llama, DRAWN, 0)],  # 0 is eos, too
)
def test_prompts_written_together_are_what_each_is_alone(
    words: Tokenizer, architecture: Architecture, sampling: Sampling, pad_id: int
) -> None:
    model, prompts = model_of(architecture), encoded(words)
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
    scores = probabilities.log()[None]
    chosen = torch.tensor([[int(drawn(scores, each).argmax()) for each in generators] for _ in range(4000)])
    for row in (0, 1):
        shares = torch.bincount(chosen[:, row], minlength=5) / 4000
        assert torch.allclose(shares, probabilities, atol=0.03)  # 4 standard deviations of a half
        assert shares[4] == 0
    assert not torch.equal(chosen[:, 0], chosen[:, 1])


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
    flat = torch.zeros(1, 400)
    first, second = (drawn(flat, torch.Generator().manual_seed(_draw_of(0, ids))) for ids in prompts[:2])
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
    stopped = replace(sampling, stop=("없는 글", stop[1:], stop))  # of two that end together the longer counts
    (answer,) = generate(model, [prompt], words, sampling=stopped, pad_id=1, seeds=[sampling.seed])
    assert answer.text == whole[: min(map(whole.index, (stop, stop[1:])))] and answer.end == "stop"
    assert len(steps) == answer.num_tokens < 20
    pace = Answer()
    pieces = list(stream(model, prompt, words, sampling=stopped, pad_id=1, answer=pace))
    assert "".join(pieces) == answer.text and pace.end == "stop"


def test_another_end_of_a_tokenizer_ends_a_text_too(words: Tokenizer) -> None:
    model = model_of(Architecture.llama)
    prompt = encoded(words)[1]
    whole = generate(model, [prompt], words, sampling=GREEDY, pad_id=1, seeds=[0])[0]
    (answer,) = generate(model, [prompt], words, sampling=GREEDY, pad_id=1, seeds=[0], eos_ids=[whole.ids[2]])
    assert answer.end == "eos" and answer.ids == whole.ids[: answer.num_tokens]
    assert answer.num_tokens <= 3 < whole.num_tokens


def test_generation_reads_each_token_once(words: Tokenizer) -> None:
    model = model_of(Architecture.gpt2)
    widths: list[int] = []
    model.register_forward_hook(
        lambda _module, _args, kwargs, _output: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    model.generation_config.eos_token_id = None
    generate(model, [encoded(words)[3]], words, sampling=GREEDY, pad_id=1)
    assert widths == [len(encoded(words)[3]), *[1] * 19]  # the rest comes from the cache


# A text, piece by piece


class Said:
    """A model that continues every prompt with these tokens, and ends."""

    config, device = SimpleNamespace(max_position_embeddings=1000), torch.device("cpu")
    generation_config = SimpleNamespace(eos_token_id=0)

    def __init__(self, *tokens: int) -> None:
        self.tokens = [*tokens, 0]

    def forward(self, *, input_ids: torch.Tensor, past_key_values: int | None, **_: object) -> SimpleNamespace:
        place = past_key_values or 0
        logits = torch.nn.functional.one_hot(torch.tensor([[self.tokens[place]]] * len(input_ids)), 3000)
        return SimpleNamespace(logits=logits, past_key_values=place + 1)

    __call__ = forward


@pytest.mark.parametrize("text", ["뷁 햏", " 앞에 공백", "웃음 🙂 끝", "긴 글 大韓民國 支援이다", "첫 줄\n둘째 줄"])
def test_the_stream_gives_whole_characters_of_byte_tokens(words: Tokenizer, text: str) -> None:
    model = Said(*words.encode(text, add_special_tokens=False).ids)
    pieces = list(stream(model, [0, 5], words, sampling=Sampling(), pad_id=1))
    assert len(pieces) > 1
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == generate(model, [[0, 5]], words, sampling=Sampling(), pad_id=1)[0].text == text


def test_half_a_character_counts_where_the_model_ends_and_not_where_it_is_cut(words: Tokenizer) -> None:
    half = [*words.encode("우리는 학교에서", add_special_tokens=False).ids, words.token_to_id("<0xED>")]
    for room, text, end in ((99, "우리는 학교에서\ufffd", "eos"), (len(half), "우리는 학교에서", "length")):
        (answer,) = generate(Said(*half), [[0]], words, sampling=Sampling(max_new_tokens=room), pad_id=1)
        assert (answer.text, answer.end, answer.num_tokens) == (text, end, len(half) + (end == "eos"))


@pytest.mark.parametrize(("token", "text"), [("##서", "서"), ("나는", " 나는")])
def test_a_continuation_starts_in_the_word_of_the_prompt_or_after_it(token: str, text: str, tmp_path: Path) -> None:
    blog = load_tokenizer(save_preset("blog", tmp_path, vocab_size=2000))
    model = Said(blog.token_to_id(token))
    prompt = blog.encode("학교에").ids
    assert generate(model, [prompt], blog, sampling=Sampling(), pad_id=1)[0].text == text
    assert list(stream(model, prompt, blog, sampling=Sampling(), pad_id=1)) == [text]


def test_a_stream_that_is_closed_ends_the_generation(words: Tokenizer) -> None:
    model = model_of(Architecture.gpt2)
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    model.generation_config.eos_token_id = None
    pieces = stream(model, [5], words, sampling=Sampling(max_new_tokens=63, temperature=1.0), pad_id=1)
    next(pieces)
    pieces.close()
    assert len(steps) < 63
    done = len(steps)
    generate(model, [[5]], words, sampling=Sampling(max_new_tokens=3), pad_id=1)
    assert len(steps) == done + 3  # nothing goes on beside it


@pytest.mark.parametrize("read", [generate, stream])
def test_sampling_leaves_the_global_random_numbers_alone(words: Tokenizer, read: object) -> None:
    model = model_of(Architecture.gpt2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    made = read(model, [[0]] if read is generate else [0], words, sampling=DRAWN, pad_id=1)
    if isinstance(made, Iterator):
        list(made)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("architecture", [Architecture.gpt2, Architecture.gemma3])
def test_a_prompt_longer_than_the_room_loses_its_beginning(words: Tokenizer, architecture: Architecture) -> None:
    model = model_of(architecture)  # 64 positions
    prompt = [2 + i % 300 for i in range(100)]
    sampling = Sampling(max_new_tokens=20)
    whole, end = (generate(model, [line], words, sampling=sampling, pad_id=1) for line in (prompt, prompt[-44:]))
    assert whole == end
