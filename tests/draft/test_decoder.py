from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import transformers

from qmd.draft.cost import CostTable
from qmd.draft.decoder import SpeculativeDecoder
from qmd.draft.proposers import Proposal, Situation, SuffixProposer
from qmd.draft.sampling import Sampling, distribution
from qmd.draft.torch_target import TorchTarget, TransformersTarget


class Oracle:
    """Knows the right continuation, and is wrong at every `wrong`-th token."""

    name = "oracle"
    token_cost = 0.0

    def __init__(self, answer: Sequence[int], wrong: int = 4) -> None:
        self.answer, self.wrong = list(answer), wrong

    def start(self, prompt, passages=()):
        self.prompt = len(prompt)

    def propose(self, situation: Situation, limit: int) -> Proposal:
        at = len(situation.tokens) - self.prompt
        tokens = [
            (t + (i % self.wrong == 0)) % 96 for i, t in enumerate(self.answer[at : at + limit], start=at)
        ]
        return Proposal(tuple(tokens), (0.9,) * len(tokens))

    def observe(self, proposal, verified, accepted): ...

    def extend(self, tokens): ...


class Guess:
    """Draws from a fixed distribution: a draft with probabilities."""

    name = "guess"
    token_cost = 0.0

    def __init__(self, q: torch.Tensor) -> None:
        self.q = q

    def start(self, prompt, passages=()): ...

    def propose(self, situation: Situation, limit: int) -> Proposal:
        tokens = torch.multinomial(self.q, limit, replacement=True, generator=situation.generator)
        return Proposal(tuple(tokens.tolist()), (0.5,) * limit, self.q.expand(limit, -1))

    def observe(self, proposal, verified, accepted): ...

    def extend(self, tokens): ...


def prompts(count: int) -> list[list[int]]:
    g = torch.Generator().manual_seed(5)
    return [
        torch.randint(0, 96, (int(n),), generator=g).tolist()
        for n in torch.randint(3, 40, (count,), generator=g)
    ]


@pytest.mark.parametrize("gamma", [1, 2, 5, 16])
def test_greedy_is_identical_to_plain_greedy(model, gamma):
    target = TorchTarget(model)
    plain = SpeculativeDecoder([], target, gamma=gamma, eos_token_ids=[96])
    for prompt in prompts(5):
        prompt = prompt * 2
        expected = plain.generate(prompt, 40, temperature=0)
        answer = expected[0, len(prompt) :].tolist()
        for draft in (None, Oracle(answer), [SuffixProposer(), Oracle(answer, 3)]):
            fast = SpeculativeDecoder(draft, target, gamma=gamma, cost=CostTable.flat(), eos_token_ids=[96])
            assert torch.equal(fast.generate(prompt, 40, temperature=0), expected)


def test_greedy_is_what_transformers_writes(model):
    for prompt in prompts(8):
        ids = torch.tensor([prompt])
        reference = model.generate(ids, max_new_tokens=30, do_sample=False, pad_token_id=0, eos_token_id=96)
        for target in (TorchTarget(model), TransformersTarget(model)):
            fast = SpeculativeDecoder(None, target, gamma=5, cost=CostTable.flat(), eos_token_ids=[96])
            assert torch.equal(fast.generate(ids, 30, temperature=0), reference)


def test_proposals_save_forwards_and_are_counted(model):
    target, prompt = TorchTarget(model), prompts(1)[0]
    answer = (
        SpeculativeDecoder([], target, eos_token_ids=[])
        .generate(prompt, 41, temperature=0)[0, len(prompt) :]
        .tolist()
    )
    fast = SpeculativeDecoder(
        Oracle(answer, wrong=10**9), target, gamma=4, cost=CostTable.flat(), eos_token_ids=[]
    )
    fast.generate(prompt, 41, temperature=0)
    s = fast.stats
    # token 0 is marked wrong by the oracle but comes from the prompt; the rest stand, five tokens a step
    assert (s.new_tokens, s.steps, s.proposed, s.accepted) == (41, 8, 32, 32)
    assert s.tokens_per_step == 5
    assert s.acceptance == 1


def test_end_of_text_inside_a_draft_ends_the_answer(model):
    target, prompt = TorchTarget(model), prompts(1)[0]
    free = (
        SpeculativeDecoder([], target, eos_token_ids=[])
        .generate(prompt, 30, temperature=0)[0, len(prompt) :]
        .tolist()
    )
    eos = free[12]
    first = free.index(eos)
    fast = SpeculativeDecoder(
        Oracle(free, 10**9), target, gamma=8, cost=CostTable.flat(), eos_token_ids=[eos]
    )
    assert fast.generate(prompt, 30, temperature=0)[0, len(prompt) :].tolist() == free[: first + 1]


class Letters:
    """A tokenizer of one letter a token."""

    eos_token_id = 96

    def decode(self, ids):
        return "".join(chr(32 + int(i)) for i in ids)


def test_stop_string_and_streamer(model):
    target, prompt = TorchTarget(model), prompts(1)[0]
    free = (
        SpeculativeDecoder([], target, eos_token_ids=[])
        .generate(prompt, 30, temperature=0)[0, len(prompt) :]
        .tolist()
    )
    stop = Letters().decode(free[9:11])
    end = Letters().decode(free).index(stop) + 2
    seen: list[int] = []
    fast = SpeculativeDecoder(
        Oracle(free, 7), target, Letters(), gamma=6, cost=CostTable.flat(), eos_token_ids=[]
    )
    out = fast.generate(prompt, 30, temperature=0, stop=[stop], streamer=seen.extend)
    assert out[0, len(prompt) :].tolist() == free[:end] == seen


class Bytes:
    """A tokenizer of one byte a token."""

    eos_token_id = None

    def decode(self, ids, **_):
        return bytes(ids).decode("utf-8", "replace")


class Script:
    """A target that writes a given text after a prompt of three tokens, then full stops."""

    vocab_size, max_context, fingerprint = 256, 4096, "script"

    class Cache:
        length = 0

        def crop(self, length):
            self.length = length

    def __init__(self, text: str) -> None:
        self.text = text.encode() + b"." * 200
        self.new_cache = self.Cache

    def forward(self, tokens, cache, *, last_only=False):
        first = cache.length + 1 - 3
        cache.length += len(tokens)
        rows = torch.zeros(len(tokens), 256)
        for i in range(len(tokens)):
            rows[i, self.text[max(0, first + i)]] = 9.0
        return rows[-1:] if last_only else rows


def written_by(text: str, **options) -> list[int]:
    decoder = SpeculativeDecoder([], Script(text), Bytes(), eos_token_ids=[])
    return decoder.generate([1, 2, 3], temperature=0, **options)[0, 3:].tolist()


def test_a_stop_string_of_many_bytes_is_found():
    found = written_by("你好吗？以上就是全部的回答。以后", max_new_tokens=90, stop=["以上就是全部的回答"])
    assert Bytes().decode(found) == "你好吗？以上就是全部的回答"


@pytest.mark.parametrize("stop", ["END", [""], ["END", ""]])
def test_a_stop_that_is_no_list_of_texts_is_refused(stop):
    with pytest.raises(ValueError, match="list of strings"):
        written_by("hello", stop=stop)


@pytest.mark.parametrize(("skip", "text"), [(True, "hello"), (False, "\x01\x02\x03hello")])
def test_a_streamer_of_transformers_prints_what_it_does_there(skip, text):
    from transformers import TextStreamer

    class Kept(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            pieces.append(text)

    pieces: list[str] = []
    written_by("hello", max_new_tokens=5, streamer=Kept(Bytes(), skip_prompt=skip))
    assert "".join(pieces) == text


def test_a_streamer_is_ended_where_nothing_is_to_be_written():
    class Ended:
        ended = False

        def put(self, tokens): ...

        def end(self):
            self.ended = True

    streamer = Ended()
    written_by("hello", max_new_tokens=0, streamer=streamer)
    assert streamer.ended


def test_a_target_ends_texts_as_its_model_does(qwen3):
    made = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32, eos_token_id=5)
    ).eval()
    assert SpeculativeDecoder([], TransformersTarget(made)).eos == SpeculativeDecoder([], made).eos == {5}
    had, qwen3.generation_config.eos_token_id = qwen3.generation_config.eos_token_id, [2, 7]
    assert SpeculativeDecoder([], TorchTarget(qwen3)).eos == {2, 7, 96}
    qwen3.generation_config.eos_token_id = had


def test_a_context_shorter_than_the_longest_proposal(qwen3):
    target = TorchTarget(qwen3, max_context=12)
    fast = SpeculativeDecoder(None, target, gamma=16, eos_token_ids=[])
    plain = SpeculativeDecoder([], target, eos_token_ids=[])
    assert torch.equal(*(d.generate([1, 2, 1, 2], 20, temperature=0) for d in (fast, plain)))


def test_a_cache_with_a_prefix_is_used_and_left_extended(model):
    target, prompt = TorchTarget(model), prompts(3)[2]
    decoder = SpeculativeDecoder([], target, eos_token_ids=[])
    expected = decoder.generate(prompt, 12, temperature=0)
    cache = target.new_cache()
    target.forward(prompt[:-2], cache)
    assert torch.equal(decoder.generate(prompt, 12, temperature=0, cache=cache), expected)
    assert decoder.stats.reused_tokens == len(prompt) - 2
    assert cache.length == len(prompt) + 11


def chi_square(counts: torch.Tensor, p: torch.Tensor) -> float:
    from scipy.stats import chisquare

    total = counts.sum()
    big = p * total >= 5
    observed = torch.cat([counts[big], counts[~big].sum()[None]]).double()
    expected = torch.cat([p[big], p[~big].sum()[None]]).double() * total
    keep = expected > 0
    assert observed[~keep].sum() == 0
    return float(
        chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue
    )


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.8, top_k=20), Sampling(1.2, top_p=0.9)])
@pytest.mark.parametrize("drawn", [True, False])
def test_accept_keeps_the_distribution(sampling, drawn):
    """20,000 pairs of tokens against the exact joint distribution, at an acceptance between .3 and .8."""
    from qmd.draft.sampling import accept

    g = torch.Generator().manual_seed(11)
    vocab = 24
    first = distribution(torch.randn(1, vocab, generator=g), sampling)[0]
    second = distribution(torch.randn(vocab, vocab, generator=g), sampling)  # given the first
    tail = torch.full((vocab,), 1 / vocab)
    q = distribution(
        first.clamp_min(1e-6).log()[None] + 0.8 * torch.randn(2, vocab, generator=g), Sampling(1.0)
    )
    counts, stood, offered = torch.zeros(vocab, vocab), 0, 0
    for _ in range(20_000):
        certain = [int(first.argmax()), 3]
        offer = [int(torch.multinomial(row, 1, generator=g)) for row in q] if drawn else certain
        accepted, following = accept(
            offer, q if drawn else None, torch.stack([first, second[offer[0]], tail]), g
        )
        out = [*offer[:accepted], following][:2]
        if len(out) == 1:
            out.append(int(torch.multinomial(second[out[0]], 1, generator=g)))
        counts[out[0], out[1]] += 1
        offered += 1
        stood += accepted >= 1
    p = first[:, None] * second
    assert chi_square(counts.flatten(), p.flatten()) > 0.01
    if drawn:
        assert 0.3 < stood / offered < 0.8


@pytest.mark.parametrize(
    "samples", [1200, pytest.param(20_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_the_whole_decoder_keeps_the_distribution(qwen3, samples):
    """Second sampled token of many generations, marginal over the first, against the model's exact figures."""
    target, prompt = TorchTarget(qwen3), [5, 9, 5, 9, 5]
    sampling = Sampling(0.7, top_k=8)
    cache = target.new_cache()
    p1 = distribution(target.forward(prompt, cache, last_only=True), sampling)[0]
    p2 = torch.zeros(97)
    for token in p1.nonzero().flatten().tolist():
        cache.crop(len(prompt))
        p2 += p1[token] * distribution(target.forward([token], cache), sampling)[0]
    q = 0.6 * p2 + 0.4 / 97
    decoder = SpeculativeDecoder(Guess(q), target, gamma=2, cost=CostTable.flat(), eos_token_ids=[])
    counts, proposed, accepted = torch.zeros(97), 0, 0
    for seed in range(samples):
        out = decoder.generate(prompt, 3, temperature=0.7, top_p=1.0, top_k=8, seed=seed)
        counts[out[0, len(prompt) + 1]] += 1
        proposed, accepted = proposed + decoder.stats.proposed, accepted + decoder.stats.accepted
    assert chi_square(counts, p2) > 0.01
    assert 0.3 < accepted / proposed < 0.8


def test_top_p_and_top_k_cut_where_they_say():
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    assert distribution(logits, Sampling(1.0, top_p=0.65))[0].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert distribution(logits, Sampling(1.0, top_k=3))[0].tolist() == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0])
    assert distribution(logits, Sampling(0))[0].tolist() == [1, 0, 0, 0]


def test_bad_requests_are_refused(model):
    target = TorchTarget(model)
    with pytest.raises(ValueError, match="1 to 16"):
        SpeculativeDecoder(None, target, gamma=17)
    decoder = SpeculativeDecoder([], target)
    with pytest.raises(ValueError, match="at least one token"):
        decoder.generate([])
    with pytest.raises(ValueError, match="tokenizer"):
        decoder.generate([1], stop=["x"])
    with pytest.raises(ValueError, match="top_p"):
        decoder.generate([1], top_p=0)
    with pytest.raises(ValueError, match="temperature"):
        decoder.generate([1], temperature=float("nan"))
    for token in (-1, 97):
        with pytest.raises(ValueError, match="from 0 to 96"):
            decoder.generate([1, token])
    cold = decoder.generate([1, 2], 5, temperature=1e-38)
    assert torch.equal(cold, decoder.generate([1, 2], 5, temperature=0))
