"""The search whose steps are tensors of fixed shape: the former search's outputs, no waits, one graph."""

import random
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch.utils._python_dispatch import TorchDispatchMode

from models.generation import CandidateTrie, GenerationConfig, generate
from models.generation.constraints import TokenRules
from models.generation.ensemble import Ensemble
from models.generation.search import _Search
from models.ofa import OFA, OFAConfig
from tests.fake_gpu import build, fake_gpu
from tests.models.generation import reference_search
from utils.constants import BOS
from utils.errors import UserError

SOURCES = torch.tensor([[0, 40, 51, 62, 2], [0, 73, 2, 1, 1], [0, 84, 45, 2, 1], [0, 33, 34, 2, 1]])


@pytest.fixture(scope="module")
def models(make_golden_model: Any) -> list[Any]:
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in dict(embed_dim=32, ffn_embed_dim=32, attention_heads=4).items()}  # fmt: skip
    more = dict(vocab_size=90, encoder_layers=1, resnet_type="resnet10", code_image_size=32, image_bucket_size=8)
    return [make_golden_model(decoder_layers=layers, **sizes, **more) for layers in (2, 1)]


def random_options(rng: random.Random) -> dict[str, Any]:
    """Options of `GenerationConfig`, some of which cannot be combined."""

    def maybe(chance: float, **options: Any) -> dict[str, Any]:
        return options if rng.random() < chance else {}

    beam = rng.randint(1, 6)
    strategy = rng.choice(
        [{}] * 4
        + [
            {"sampling": True, **maybe(0.4, sampling_topk=rng.randint(1, 9)), **maybe(0.4, sampling_topp=0.6)},
            {"diverse_beam_groups": rng.choice([g for g in range(1, beam + 1) if beam % g == 0])},
            {"diversity_rate": rng.choice([0.0, 0.7])},
            {"match_source_len": True},
        ]
    )
    return {
        "beam": beam, "max_len_b": rng.randint(1, 9), **strategy,
        **maybe(0.3, min_len=rng.randint(0, 9)), **maybe(0.3, lenpen=rng.choice([0.0, 0.5, 2.0])),
        **maybe(0.2, unnormalized=True), **maybe(0.2, unkpen=1.5), **maybe(0.2, temperature=rng.choice([0.5, 2.0])),
        **maybe(0.4, no_repeat_ngram_size=rng.randint(1, 4)), **maybe(0.2, max_len_a=0.5),
        **maybe(0.15, constraint_range="30,60"), **maybe(0.1, gen_code=True), **maybe(0.2, zero_shot=True),
    }  # fmt: skip


def outcome(search: Any, models: Any, options: dict[str, Any], trie: Any, prefix: Any, seeded: bool) -> Any:
    """Hypotheses, or what was refused."""
    torch.manual_seed(7)
    try:
        config = GenerationConfig(**options)
        own = [torch.Generator().manual_seed(n) for n in range(len(SOURCES))] if seeded and config.sampling else None
        return search(models, {"src_tokens": SOURCES}, config, trie, prefix, own)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("seed", range(20))
def test_any_options_give_what_the_former_search_gave(models: list[Any], seed: int) -> None:
    rng, compared = random.Random(seed), 0
    while compared < 25:
        options, some = random_options(rng), models[: rng.choice([1, 1, 2])]
        trie = CandidateTrie(
            [[rng.randrange(30, 60) for _ in range(rng.randint(1, 5))] for _ in range(rng.randint(1, 40))]
        )
        given = rng.choice([None, None, None, trie])
        prefix = torch.tensor([[50, 55, 1], [50, 1, 1], [50, 51, 52], [50, 51, 1]])[:, : rng.randint(1, 3)]
        setting = (options, given, prefix if rng.random() < 0.3 else None, rng.random() < 0.5)
        actual = outcome(generate, some, *setting)
        if isinstance(actual, str) and any(
            words in actual for words in ("cannot be combined", "is above the longest", "lie out")
        ):
            continue  # refused before the search begins
        expected = outcome(reference_search.generate, some, *setting)
        if isinstance(expected, str) or isinstance(actual, str):
            assert actual == expected, options
            continue
        compared += 1
        for a_sample, e_sample in zip(actual, expected, strict=True):
            assert [h.tokens.tolist() for h in a_sample] == [h.tokens.tolist() for h in e_sample], options
            for a, e in zip(a_sample, e_sample, strict=True):
                assert a.score == pytest.approx(e.score, rel=1e-5, abs=1e-4)
                torch.testing.assert_close(a.positional_scores, e.positional_scores, atol=1e-4, rtol=0)


OPTIONS: dict[str, dict[str, Any]] = {
    "caption": {"beam": 5, "no_repeat_ngram_size": 3},
    "sampling": {"beam": 3, "sampling": True, "sampling_topk": 5, "min_len": 6},
    "nucleus": {"beam": 3, "sampling": True, "sampling_topp": 0.9},
    "diverse": {"beam": 4, "diverse_beam_groups": 2},
    "siblings": {"beam": 4, "diversity_rate": 0.5},
    "codes": {"beam": 1, "gen_code": True, "sampling": True},
    "range": {"beam": 2, "constraint_range": "30,60"},
    "range_zero_shot": {"beam": 2, "constraint_range": "30,60", "zero_shot": True},
    "answers": {"beam": 3}, "answers_zero_shot": {"beam": 3, "zero_shot": True},
    "forced": {"beam": 3}, "as_long_as_the_source": {"beam": 2, "match_source_len": True},
}  # fmt: skip


def small_search(models: list[Any], name: str, sources: torch.Tensor = SOURCES, steps: int = 6) -> _Search:
    """A search before its first step."""
    config = GenerationConfig(max_len_b=steps + 1, **OPTIONS[name])
    device, prompt = sources.device, sources.new_full((len(sources), 1), BOS)
    trie = (
        CandidateTrie([[30, *range(31, 31 + n)] for n in range(3, 9)] + [[40]]).to(device)
        if "answers" in name
        else None
    )
    prefix = sources[:, 1:3] if name == "forced" else sources[:, :0]
    lengths = torch.full_like(sources[:, 0], steps) if config.match_source_len else None
    rules = TokenRules(config, 90, steps + 1, prefix, trie, lengths)
    ensemble = Ensemble(models, {"src_tokens": sources}, prompt, config.beam, steps + 2, config.gen_code, 1.0)
    search = _Search(ensemble, rules, config, steps + 1, None)
    torch.manual_seed(1)
    with torch.no_grad():
        search.begin(prompt)
    return search


@torch.no_grad()
def take_steps(search: _Search, *steps: int, step: Any = None) -> None:
    for number in steps:
        search.prepare(number)
        (step or search.step)(number + 1)


class Operators(TorchDispatchMode):
    """Counts what PyTorch is asked to do."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_step_at_base_size_is_half_as_many_operators_as_it_was() -> None:
    """748 before: keys, values, tokens and scores were copied when beams changed places."""
    model = OFA(OFAConfig.from_arch("ofa_base", vocab_size=90, resnet_type="resnet10")).eval()
    search = small_search([model], "caption", SOURCES[:1].repeat(2, 1))  # nothing is padding
    take_steps(search, 1)
    with Operators() as operators:
        take_steps(search, 2)
    assert operators.count <= 374


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_no_step_waits_for_a_gpu(dtype: torch.dtype) -> None:
    def make() -> Any:
        return OFA(OFAConfig.from_arch("ofa_demo", vocab_size=90, code_image_size=32)).eval()

    with fake_gpu() as stand_in:
        model, sources = build(make, dtype), torch.zeros(2, 5, dtype=torch.long, device="cuda") + 40
        for name in OPTIONS if dtype == torch.float32 else ("caption", "codes"):
            search = small_search([model], name, sources)
            take_steps(search, 1)
            stand_in.asked.clear()
            take_steps(search, 2, 3, 4)
            assert not stand_in.asked, name
            assert search.beams.scores.device.type == "cuda"


def addresses(search: _Search) -> dict[str, int]:
    """Where a search keeps what its steps read and write."""
    parts = {f"beams.{name}": value for name, value in vars(search.beams).items()}
    parts |= {"position": search.position, "nodes": search.rules.nodes}
    for number, state in enumerate(search.ensemble.states):
        parts |= {f"{number}.{name}": value for name, value in vars(state).items() if isinstance(value, torch.Tensor)}
        parts |= {
            f"{number}.block.{name}": value for name, value in vars(state.block).items() if torch.is_tensor(value)
        }
        for layer, cache in enumerate(state.state.layers):
            parts |= {f"{number}.{layer}.keys": cache.keys, f"{number}.{layer}.values": cache.values}
    return {name: value.data_ptr() for name, value in parts.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_tensor_stays_at_its_address(models: list[Any], name: str) -> None:
    search = small_search(models, name)
    take_steps(search, 1)
    before = addresses(search)
    take_steps(search, 2, 3)
    assert len(before) > 20 and addresses(search) == before


@pytest.mark.parametrize("name", ["caption", "sampling", "diverse", "codes", "answers", "forced"])
def test_a_compiled_step_is_one_graph(models: list[Any], name: str) -> None:
    """At one length to look back at, as on a GPU; `fullgraph` refuses breaks."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled, plain = small_search(models[:1], name), small_search(models[:1], name)
    graph = torch.compile(lambda length: compiled.step(8), backend=counter, fullgraph=True)
    for search, step in ((compiled, graph), (plain, lambda length: plain.step(8))):
        torch.manual_seed(2)
        take_steps(search, 1)  # some of the forced tokens, for which other rules hold
        take_steps(search, 2, 3, 4, step=step)
    assert counter.frame_count == 1
    alive = plain.beams.scores.isfinite()  # a dead beam may draw anything
    assert alive.any() and torch.equal(compiled.beams.last[alive], plain.beams.last[alive])
    torch.testing.assert_close(compiled.beams.scores, plain.beams.scores)
