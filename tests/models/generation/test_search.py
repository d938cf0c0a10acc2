"""generate() against figures of the original implementation, and against itself."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.generation import CandidateTrie, GenerationConfig, generate, require_hypotheses
from utils.errors import UserError

RUNS = [
    "caption", "no_ngram_blocking", "ngram2", "min_len8", "lenpen0.5", "lenpen2", "unnormalized", "greedy",
    "beam2_temperature2", "beam3_temperature0.5", "max_len_a", "unkpen", "box", "box_unconstrained",
    "box_short_allowed", "codes", "trie", "trie_unnormalized", "trie_zero_shot", "trie_long_answers",
    "trie_long_answers_lenpen0.3", "prefix",
]  # fmt: skip
CAPTION = GenerationConfig(beam=4, max_len_b=7, no_repeat_ngram_size=3)
# Text of 5, 3 and 4 tokens for the small model of 90 token ids.
SOURCES = torch.tensor([[0, 40, 51, 62, 2], [0, 73, 2, 1, 1], [0, 84, 45, 2, 1]])


@pytest.fixture(scope="module")
def figures(golden):
    return golden("generate_tiny.json")


@pytest.fixture(scope="module")
def inputs(figures):
    rng = np.random.default_rng(figures["seed"])
    rng.integers(4, 50000, (3, 12))  # the ids were drawn before the images
    images = rng.standard_normal((3, 3, 128, 128), dtype=np.float32)
    np.testing.assert_array_equal(images.ravel()[:8], np.float32(figures["patch_images_first8"]))
    return {"src_tokens": torch.tensor(figures["src_tokens"]), "patch_images": torch.from_numpy(images)}


@pytest.fixture(scope="module")
def make_small(make_golden_model):
    def make(**options):
        sizes = dict(vocab_size=90, encoder_layers=1, decoder_layers=2, resnet_type="resnet10")
        return make_golden_model(**sizes, **options)

    return make


@pytest.fixture(scope="module")
def small(make_small):
    return make_small()


def compare(actual, expected, unnormalized):
    for a_sample, e_sample in zip(actual, expected, strict=True):
        assert [h.tokens.tolist() for h in a_sample] == [h["tokens"] for h in e_sample]
        for a, e in zip(a_sample, e_sample, strict=True):
            assert a.score == pytest.approx(e["score"], abs=2e-4 if unnormalized else 1e-4)
            assert a.positional_scores.tolist() == pytest.approx(e["positional_scores"], abs=1e-4)
            assert (
                a.mean_log_prob(1) * (len(a.tokens) - 1) == pytest.approx(a.log_prob(1), rel=1e-5, abs=1e-5)
                or len(a.tokens) == 1
            )
            if unnormalized:
                assert a.log_prob() == pytest.approx(e["score"], abs=2e-4)


def assert_same(first, second):
    as_figures = [[vars(h) | {"positional_scores": h.positional_scores.tolist()} for h in s] for s in second]
    for sample in as_figures:
        for hypothesis in sample:
            hypothesis["tokens"] = hypothesis["tokens"].tolist()
    compare(first, as_figures, unnormalized=False)


def rescore(models, source, tokens):
    """Log-probabilities (T, V) of the models' mean after each prefix of tokens, by one full forward."""
    prev = torch.tensor([[0, *tokens[:-1]]])
    with torch.no_grad():
        parts = [model(source[None], prev).log_softmax(-1)[0] for model in models]
    return torch.stack(parts).logsumexp(0) - math.log(len(parts))


def test_all_runs_are_compared(figures):
    assert sorted(RUNS) == sorted(figures["runs"])


@pytest.mark.parametrize("name", RUNS)
def test_equals_the_original(name, figures, inputs, tiny_model):
    run = figures["runs"][name]
    more = dict(run.get("more", {}))
    which, prefix = more.pop("trie", False), more.pop("prefix", None)
    answers = [a for a in figures["answer_tokens"] if which != "long" or len(a) >= 3]
    config = GenerationConfig(**run["options"], **more)
    hypotheses = generate(
        tiny_model, inputs, config,
        trie=CandidateTrie(answers) if which else None,
        prefix_tokens=torch.tensor(prefix) if prefix else None,
    )  # fmt: skip
    compare(hypotheses, run["hypotheses"], config.unnormalized)


@pytest.mark.parametrize("prompt", ["prev_output", "none"])
def test_answers_after_decoder_prompts_equal_the_original(prompt, figures, tiny_model):
    part = figures["vqa"][prompt]
    images = torch.from_numpy(np.random.default_rng(350).standard_normal((3, 3, 128, 128), dtype=np.float32))
    hypotheses = generate(
        tiny_model,
        {"src_tokens": torch.tensor(part["src_tokens"]), "patch_images": images},
        GenerationConfig(**part["beam_search"]["options"]),
        trie=CandidateTrie(figures["answer_tokens"]),
        prefix_tokens=torch.tensor(part["prefix_tokens"], dtype=torch.long),
    )
    compare(hypotheses, part["beam_search"]["hypotheses"], unnormalized=True)


def test_batch_equals_single_samples(small):
    prefix = torch.tensor([[50, 60, 1], [50, 1, 1], [70, 71, 72]])
    for config, given in ((CAPTION, None), (CAPTION, prefix), (replace(CAPTION, match_source_len=True), None)):
        batch = generate(small, {"src_tokens": SOURCES}, config, prefix_tokens=given)
        for i, (source, length) in enumerate(zip(SOURCES, (5, 3, 4), strict=True)):
            own = None if given is None else given[i : i + 1, : int(given[i].ne(1).sum())]
            single = generate(small, {"src_tokens": source[None, :length]}, config, prefix_tokens=own)
            assert_same(batch[i : i + 1], single)


def test_shared_prefix_in_one_chunk_equals_forcing_token_by_token(small):
    prefix = torch.tensor([[50, 60, 61], [70, 71, 72], [50, 50, 50]])
    together = generate(small, {"src_tokens": SOURCES}, CAPTION, prefix_tokens=prefix)
    one_by_one = generate(small, {"src_tokens": SOURCES}, replace(CAPTION, diversity_rate=0.0), prefix_tokens=prefix)
    assert_same(together, one_by_one)
    for sample, forced in zip(together, prefix.tolist(), strict=True):
        assert len(sample) == 4 and all(h.tokens[:3].tolist() == forced for h in sample)


def test_prefix_that_ends_or_is_too_long(small):
    prefix = torch.tensor([[50, 2, 1, 1], [50, 51, 52, 53], [50, 1, 1, 1]])
    ended, cut, free = generate(small, {"src_tokens": SOURCES}, replace(CAPTION, max_len_b=3), prefix_tokens=prefix)
    assert [h.tokens.tolist() for h in ended] == [[50, 2]]
    assert [h.tokens.tolist() for h in cut] == [[50, 51, 52, 2]]
    assert len(free) == 4


@pytest.mark.parametrize("zero_shot", [False, True])
def test_fewer_answers_than_beams(zero_shot, small):
    answers = [[50], [60, 61]]
    config = GenerationConfig(beam=5, max_len_b=10, unnormalized=True, zero_shot=zero_shot)
    for sample in generate(small, {"src_tokens": SOURCES}, config, trie=CandidateTrie(answers)):
        assert sorted(h.tokens.tolist() for h in sample) == [[50, 2], [60, 61, 2]]
        assert sample[0].score >= sample[1].score > -math.inf
        if not zero_shot:  # shares of a closed set add up to one
            assert sum(math.exp(h.score) for h in sample) == pytest.approx(1, abs=1e-4)


def test_ensemble(small, make_small):
    one = generate(small, {"src_tokens": SOURCES}, CAPTION)
    assert_same(generate([small, small], {"src_tokens": SOURCES}, CAPTION), one)
    other = make_small(attn_scale_factor=1.0)
    both = generate([small, other], {"src_tokens": SOURCES}, CAPTION)
    for source, sample in zip(SOURCES, both, strict=True):
        for h in sample:
            log_probs = rescore([small, other], source, h.tokens.tolist())
            assert h.positional_scores.tolist() == pytest.approx(
                log_probs.gather(1, h.tokens[:, None])[:, 0].tolist(), abs=1e-4
            )


def test_sampling_repeats_with_the_seed_and_keeps_to_the_most_likely(small):
    config = GenerationConfig(beam=6, max_len_b=8, min_len=2, sampling=True, sampling_topk=3)

    def draw(seed, **options):
        torch.manual_seed(seed)
        return generate(small, {"src_tokens": SOURCES}, replace(config, **options))

    first = draw(0)
    assert_same(first, draw(0))
    assert [h.tokens.tolist() for h in first[0]] != [h.tokens.tolist() for h in draw(1)[0]]
    assert all(len(sample) == 6 for sample in first)
    for source, sample in zip(SOURCES, first, strict=True):
        for h in sample:
            log_probs = rescore([small], source, h.tokens.tolist())
            torch.testing.assert_close(
                h.positional_scores, log_probs.gather(1, h.tokens[:, None])[:, 0], atol=1e-4, rtol=0
            )
            log_probs[:, 1] = log_probs[:2, 2] = -math.inf  # padding; end of sentence while too short
            ranks = (log_probs > log_probs.gather(1, h.tokens[:, None])).sum(1)
            assert bool((ranks[:8] < 3).all())  # the ninth token is end of sentence by force
    greedy = generate(small, {"src_tokens": SOURCES}, replace(config, sampling=False, sampling_topk=-1, beam=1))
    nucleus = draw(0, sampling_topk=-1, sampling_topp=1e-6)
    for sample, expected in zip(nucleus, greedy, strict=True):
        assert {tuple(h.tokens.tolist()) for h in sample} == {tuple(expected[0].tokens.tolist())}


def test_own_generators_follow_their_samples(small):
    """Samples end at different steps, and the batch's make-up changes nothing for the others."""
    config = GenerationConfig(beam=3, max_len_b=8, sampling=True)

    def draw(samples):
        generators = [torch.Generator().manual_seed(int(sample)) for sample in samples]
        torch.manual_seed(len(samples))  # of no effect
        return generate(small, {"src_tokens": SOURCES[samples]}, config, generators=generators)

    together = draw([0, 1, 2])
    assert len({h.tokens.numel() for sample in together for h in sample}) > 1
    assert_same(draw([2, 0]), [together[2], together[0]])
    assert_same(draw([1]), [together[1]])
    with pytest.raises(UserError, match="add --sampling"):
        generate(small, {"src_tokens": SOURCES}, GenerationConfig(), generators=[torch.Generator()] * 3)


def test_sampled_codes(tiny_model, inputs):
    config = GenerationConfig(
        beam=3, min_len=6, max_len_b=6, sampling=True, sampling_topk=256, gen_code=True, constraint_range="50265,58457"
    )
    torch.manual_seed(0)
    for sample in generate(tiny_model, {"src_tokens": inputs["src_tokens"]}, config):
        assert len(sample) == 3
        for h in sample:
            assert h.tokens[-1] == 2 and h.tokens.numel() == 7
            assert bool(((h.tokens[:-1] >= 50265) & (h.tokens[:-1] < 58457)).all())


def test_diverse_groups(small):
    def first_tokens(**options):
        config = GenerationConfig(beam=4, max_len_b=6, min_len=2, **options)
        return [[h.tokens.tolist() for h in s] for s in generate(small, {"src_tokens": SOURCES}, config)]

    assert first_tokens(diverse_beam_groups=1) == first_tokens()
    greedy = [s[0] for s in first_tokens(diverse_beam_groups=4, diverse_beam_strength=0.0)]
    config = GenerationConfig(beam=1, max_len_b=6, min_len=2)
    assert greedy == [s[0].tokens.tolist() for s in generate(small, {"src_tokens": SOURCES}, config)]
    for sample in first_tokens(diverse_beam_groups=4, diverse_beam_strength=1000.0):
        assert len({tokens[0] for tokens in sample}) == 4


def test_diverse_siblings(small):
    plain = generate(small, {"src_tokens": SOURCES}, CAPTION)
    assert_same(generate(small, {"src_tokens": SOURCES}, replace(CAPTION, diversity_rate=0.0)), plain)
    other = generate(small, {"src_tokens": SOURCES}, replace(CAPTION, diversity_rate=3.0))
    assert any(a.tokens.tolist() != b.tokens.tolist() for a, b in zip(plain[0], other[0], strict=True))


def test_outputs_as_long_as_the_source(small):
    hypotheses = generate(small, {"src_tokens": SOURCES}, GenerationConfig(beam=3, match_source_len=True))
    for sample, length in zip(hypotheses, (4, 2, 3), strict=True):  # begin of sentence counts, its end does not
        assert [h.tokens.numel() - 1 for h in sample] == [length] * 3
        assert all(h.positional_scores[-1] == 0 for h in sample)


def test_retained_dropout(make_small):
    model = make_small(dropout=0.3, attention_dropout=0.3)

    def scores(seed, retain):
        torch.manual_seed(seed)
        config = replace(CAPTION, retain_dropout=retain)
        return [h.score for sample in generate(model, {"src_tokens": SOURCES}, config) for h in sample]

    assert scores(0, False) == scores(1, False)
    assert scores(0, True) == scores(0, True) != scores(1, True)
    assert not any(module.training for module in model.modules())


def test_sample_without_a_number_leaves_the_others_alone(tiny_model, inputs):
    images = inputs["patch_images"].clone()
    images[1] = math.nan
    config = GenerationConfig(beam=3, max_len_b=4)
    broken = generate(tiny_model, {**inputs, "patch_images": images}, config)
    assert broken[1] == []
    with pytest.raises(UserError, match="not a number"):
        require_hypotheses(broken)
    whole = generate(tiny_model, inputs, config)
    assert_same(broken[::2], whole[::2])


IMPOSSIBLE = {
    "trie": (dict(min_len=4), [[50], [60, 61]], None),
    "zero shot": (dict(min_len=4, zero_shot=True), [[50], [60, 61]], None),
    "sampling": (dict(min_len=4, sampling=True), [[50], [60, 61]], None),
    "too long": (dict(max_len_b=2), [[50, 51, 52], [60, 61, 62]], None),
    "prefix": (dict(min_len=6), [[50], [60, 61]], [[70, 71], [70, 1], [72, 73]]),
    "range": (dict(min_len=4, max_len_b=4, constraint_range="50,52", no_repeat_ngram_size=1), None, None),
    "repeats": (dict(min_len=3, no_repeat_ngram_size=1), [[50, 50, 50], [60]], None),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_no_possible_output_is_one_sentence(name, small):
    options, answers, prefix = IMPOSSIBLE[name]
    with pytest.raises(UserError, match="tokens is possible: lower --min-len, raise --max-len-b"):
        generate(
            small, {"src_tokens": SOURCES}, GenerationConfig(**{"max_len_b": 9, "beam": 3, **options}),
            trie=CandidateTrie(answers) if answers else None,
            prefix_tokens=torch.tensor(prefix) if prefix else None,
        )  # fmt: skip


def test_results_can_be_trained_on(small):
    tokens = generate(small, {"src_tokens": SOURCES}, CAPTION)[0][0].tokens
    assert not tokens.is_inference()  # backward has to keep it
    small(SOURCES[:1], torch.cat([tokens.new_zeros(1), tokens[:-1]])[None]).sum().backward()
    small.zero_grad()


@pytest.mark.parametrize(
    ("message", "config"),
    [
        ("--min-len 9", GenerationConfig(min_len=9, max_len_b=8)),
        ("beyond the 90 token ids", GenerationConfig(constraint_range="4,91")),
        ("--max-len-b", GenerationConfig(max_len_b=1024)),
    ],
)
def test_refused(message, config, small):
    with pytest.raises(ValueError, match=message):
        generate(small, {"src_tokens": SOURCES}, config)


def test_range_and_trie_are_refused_together(small):
    with pytest.raises(UserError, match="cannot be combined"):
        generate(small, {"src_tokens": SOURCES}, GenerationConfig(constraint_range="4,9"), trie=CandidateTrie([[5]]))
