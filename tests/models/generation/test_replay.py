"""Steps that are recorded once and repeated without Python: a stand-in for CUDA graphs on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.generation import CandidateTrie, GenerationConfig, generate, replay
from models.generation.replay import Replay
from models.ofa import OFA, OFAConfig
from tests.models.generation.test_fixed_step import OPTIONS, SOURCES


class Recording(TorchDispatchMode):
    """What a step asks of PyTorch, to be asked again of the same tensors: as a CUDA graph, it knows addresses only."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert "local_scalar" not in str(func) and "nonzero" not in str(func), func
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if torch.is_tensor(old) and old.untyped_storage().data_ptr() not in given:  # neither view nor in place
                    old.copy_(new)


class Graphs:
    """Takes the place of CUDA: counts recordings and repetitions."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        with Recording() as recording:
            step()  # CUDA would only note it: the first repetition is this one
        first = True

        def again() -> None:
            nonlocal first
            self.replayed += 1
            if not first:
                recording.replay()
            first = False

        return again


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    stand_in = Graphs()
    monkeypatch.setattr(replay, "record", stand_in.record)
    monkeypatch.setattr("models.generation.search.can_record", lambda device: True)
    return stand_in


@pytest.fixture(scope="module")
def models() -> list[OFA]:
    torch.manual_seed(5)
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in dict(embed_dim=32, ffn_embed_dim=32, attention_heads=4, layers=2).items()}  # fmt: skip
    config = OFAConfig.from_arch("ofa_demo", vocab_size=90, code_image_size=96, **sizes)
    return [OFA(config).eval() for _ in range(2)]


def outputs(models: list[OFA], options: dict[str, Any], trie: Any, prefix: Any, on: bool) -> list[Any]:
    for model in models:
        model.cuda_graphs = on
    torch.manual_seed(7)
    # Draws depend on which samples are left, and with graphs finished ones are dropped later.
    sources = SOURCES[:1] if options.get("sampling") else SOURCES
    found = generate(models, {"src_tokens": sources}, GenerationConfig(**options), trie, prefix)
    return [[(h.tokens.tolist(), h.score) for h in sample] for sample in found]


@pytest.mark.parametrize(
    ("name", "length", "count"), [(name, 40, 1) for name in OPTIONS] + [("caption", 7, 2), ("sampling", 7, 2)]
)
def test_replayed_steps_choose_what_plain_steps_choose(
    name: str, length: int, count: int, models: list[OFA], graphs: Graphs
) -> None:
    options = {**OPTIONS[name], "max_len_b": length}
    trie = CandidateTrie([[30, *range(31, 31 + n)] for n in range(3, 9)] + [[40]]) if "answers" in name else None
    prefix = torch.tensor([[50, 55, 1], [50, 1, 1], [50, 51, 52], [50, 51, 1]]) if name == "forced" else None
    plain = outputs(models[:count], options, trie, prefix, False)
    assert not graphs.recorded
    replayed = outputs(models[:count], options, trie, prefix, True)
    assert [[tokens for tokens, _ in sample] for sample in replayed] == [[t for t, _ in sample] for sample in plain]
    for mine, theirs in zip(replayed, plain, strict=True):
        assert [score for _, score in mine] == pytest.approx([score for _, score in theirs], abs=1e-4)
    if length == 40 and trie is None and name != "as_long_as_the_source":
        assert graphs.replayed > 2 * graphs.recorded > 0


def test_own_generators_fall_back_to_plain_steps(models: list[OFA], graphs: Graphs) -> None:
    models[0].cuda_graphs = True
    config = GenerationConfig(beam=2, sampling=True, max_len_b=8)
    generators = [torch.Generator().manual_seed(n) for n in range(len(SOURCES))]
    assert generate(models[0], {"src_tokens": SOURCES}, config, generators=generators) and not graphs.recorded


def test_a_length_is_rounded_up_and_other_rules_are_another_graph(graphs: Graphs) -> None:
    seen: list[int] = []
    rules = ["a"]
    steps = Replay(lambda length: seen.append(length), 70, lambda: rules[0])
    for length in (2, 3, 32):
        steps.step(length)
    assert seen == [32, 32] and graphs.recorded == 1  # run, recorded, repeated
    for length in (33, 64, 65, 66):
        steps.step(length)
    assert seen[2:] == [64, 64, 70, 70]
    rules[0] = "b"
    steps.step(66)
    assert graphs.recorded == 3 and len(seen) == 7
    steps.forget()
    steps.step(66)
    assert len(seen) == 8 and graphs.recorded == 3


def test_without_a_gpu_nothing_is_recorded(models: list[OFA], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "record", lambda step: pytest.fail("no GPU"))
    assert outputs(models[:1], {"beam": 2, "max_len_b": 5}, None, None, True)
