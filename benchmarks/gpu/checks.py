"""Golden figures on the device: forward passes, generation, losses and gradients in float32; bfloat16 beside it.

    python -m benchmarks.gpu.checks [--device cpu --tiny]

Exits with 1 if a figure is off. --tiny checks a few of each kind.
"""

import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "golden"))

import forward_cases
import weights
from loss_cases import make_batch

from benchmarks.gpu.measure import add_row, begin_table, exact_float32, make_parser
from models.generation import CandidateTrie, GenerationConfig, generate, rank_candidates
from models.ofa import OFA, OFAConfig

Check = tuple[str, Callable[[], str]]
GOLDEN = Path(forward_cases.__file__).parent


def load(name: str) -> Any:
    """Parsed JSON of a golden file."""
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


@cache
def network(device: str, **options: Any) -> OFA:
    """`ofa_tiny` with the golden weights."""
    return weights.fill_(OFA(OFAConfig.from_arch("ofa_tiny", **options))).eval().to(device)


def to(device: str, value: Any) -> Any:
    """Tensors of nested containers on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: to(device, entry) for key, entry in value.items()}
    return [to(device, entry) for entry in value] if isinstance(value, list) else value


def forward_checks(device: str) -> Iterator[Check]:
    """Logits of the golden forward passes; what bfloat16 autocast does to them."""
    figures, arrays = load("forward_tiny.json")["cases"], forward_cases.load_arrays("forward_tiny")

    def check(name: str) -> str:
        case = forward_cases.select(arrays, name)
        model = network(device, code_image_size=256) if name == "codes_1024" else network(device)
        size = forward_cases.IMAGE_SIZES.get(name, (128, 128))
        inputs = to(device, forward_cases.make_inputs(case, figures[name]["seed"], size))
        inputs["prev_output_tokens"] = torch.from_numpy(case["in_prev_output_tokens"]).long().to(device)
        if "in_code_masks" in case:
            inputs["code_masks"] = torch.from_numpy(case["in_code_masks"]).to(device)
        inputs["sample_patch_num"] = 20 if name.endswith("sampled") else None
        seed = figures[name]["seed"]
        with torch.no_grad():
            logits = model(**inputs, patch_generator=random.Random(seed)).cpu()
        forward_cases.check_logits(logits, case)
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            half = model(**inputs, patch_generator=random.Random(seed)).float().cpu()
        real = torch.from_numpy(case["in_prev_output_tokens"] != 1)
        difference = (half.log_softmax(-1) - logits.log_softmax(-1))[real].abs()
        agreement = (half.argmax(-1) == logits.argmax(-1))[real].float().mean()
        return f"bf16: mean {difference.mean():.3f}, largest {difference.max():.2f}, same argmax {agreement:.1%}"

    for name in forward_cases.CASES:
        yield f"forward {name}", partial(check, name)


def generation_checks(device: str) -> Iterator[Check]:
    """Tokens and scores of the golden searches, and the exact scores of a closed answer set."""
    figures = load("generate_tiny.json")
    rng = np.random.default_rng(figures["seed"])
    rng.integers(4, 50000, (3, 12))
    images = torch.from_numpy(rng.standard_normal((3, 3, 128, 128), dtype=np.float32)).to(device)
    inputs = {"src_tokens": torch.tensor(figures["src_tokens"], device=device), "patch_images": images}

    def check(run: dict[str, Any]) -> str:
        more = dict(run.get("more", {}))
        which, prefix = more.pop("trie", False), more.pop("prefix", None)
        answers = [a for a in figures["answer_tokens"] if which != "long" or len(a) >= 3]
        hypotheses = generate(
            network(device), inputs, GenerationConfig(**run["options"], **more),
            trie=CandidateTrie(answers) if which else None,
            prefix_tokens=torch.tensor(prefix, device=device) if prefix else None,
        )  # fmt: skip
        for ours, theirs in zip(hypotheses, run["hypotheses"], strict=True):
            assert [h.tokens.tolist() for h in ours] == [h["tokens"] for h in theirs], "other tokens"
            np.testing.assert_allclose([h.score for h in ours], [h["score"] for h in theirs], atol=2e-4)
        return ""

    def rank(part: dict[str, Any]) -> str:
        pixels = np.random.default_rng(350).standard_normal((3, 3, 128, 128), dtype=np.float32)
        source = torch.tensor(part["src_tokens"], device=device)
        with torch.no_grad():
            enc = network(device).encode(source, torch.from_numpy(pixels).to(device))
            ranked = rank_candidates(
                network(device), enc, CandidateTrie(figures["answer_tokens"]), part["decoder_prompts"], top_k=None
            )
        np.testing.assert_allclose(ranked.scores.cpu().numpy(), np.array(part["scores"]), atol=2e-4)
        return ""

    for name, run in figures["runs"].items():
        yield f"generate {name}", partial(check, run)
    for name in ("prev_output", "none"):
        yield f"rank {name}", partial(rank, figures["vqa"][name])


def loss_checks(device: str) -> Iterator[Check]:
    """Losses and gradient norms of the registered criterions."""
    import ofa_module  # isort: skip  # noqa: F401

    from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY

    from models.fairseq_ofa import FairseqOFA

    kinds = {
        "cross_entropy": "adjust_label_smoothed_cross_entropy",
        "encouraging": "adjust_label_smoothed_encouraging_loss",
    }
    figures = load("losses_tiny.json")
    model = weights.fill_(FairseqOFA(OFAConfig.from_arch("ofa_tiny"))).eval().to(device)
    task = SimpleNamespace(target_dictionary=SimpleNamespace(pad=lambda: 1, eos=lambda: 2))

    def check(run: dict[str, Any]) -> str:
        name = kinds[run["criterion"]]
        config = CRITERION_DATACLASS_REGISTRY[name](**{"sentence_avg": False, **run["options"]})
        batch = to(device, make_batch(figures, run["batch"]))
        criterion = CRITERION_REGISTRY[name](config, task)
        criterion.patch_generator = random.Random(run.get("python_seed"))
        model.zero_grad()
        loss, _, _ = criterion(model, batch, update_num=run["update_num"])
        loss.backward()
        norms = [p.grad.double().norm() for p in model.parameters() if p.grad is not None]
        np.testing.assert_allclose(loss.item(), run["loss"], rtol=1e-5)
        np.testing.assert_allclose(torch.stack(norms).norm().item(), run["gradient_norm"], rtol=1e-4)
        return ""

    for name, run in figures["model_runs"].items():
        # The original passes these two on to nothing: ours heeds them.
        if run["criterion"] in kinds and not {"drop_best_ratio", "drop_best_after"} & run["options"].keys():
            yield f"loss {name}", partial(check, run)


def distributed_checks(device: str) -> Iterator[Check]:
    """One process under the device's own backend: gradients through DDP, and what the project exchanges."""

    def check() -> str:
        from torch.nn.parallel import DistributedDataParallel

        from utils.distributed import gather_objects, sum_over_ranks

        backend = "nccl" if device == "cuda" else "gloo"
        with tempfile.NamedTemporaryFile() as file:
            dist.init_process_group(backend, init_method=f"file://{file.name}", rank=0, world_size=1)
            try:
                model = OFA(OFAConfig.from_arch("ofa_demo")).to(device)
                tokens = torch.tensor([[0, 5, 6, 2]], device=device)
                norms = []
                for network in (model, DistributedDataParallel(model, find_unused_parameters=True)):
                    model.zero_grad()
                    network(tokens, tokens).square().mean().backward()
                    gradient = model.encoder.embed_tokens.weight.grad
                    assert gradient is not None
                    norms.append(gradient.norm().item())
                np.testing.assert_allclose(norms[1], norms[0], rtol=1e-6)
                assert gather_objects({"a": 1}) == [{"a": 1}]
                assert float(sum_over_ranks(torch.tensor(2.0, device=device))) == 2.0
            finally:
                dist.destroy_process_group()
        return f"one process, {backend}"

    yield "DDP and exchange", check


def main() -> int:
    """Prints a table of the checks; 1 if one failed."""
    args = make_parser(__doc__ or "").parse_args()
    exact_float32()
    done = failed = 0
    begin_table("golden figure", "float32", "note")
    for kind in (forward_checks, generation_checks, loss_checks, distributed_checks):
        for number, (name, check) in enumerate(kind(args.device)):
            if args.tiny and number > 1:
                break
            done += 1
            try:
                if note := check():
                    add_row(name, "equal", note)
            except (AssertionError, RuntimeError, ValueError) as error:
                failed += 1
                add_row(name, "DIFFERENT", error)
    print(f"\n{done - failed} of {done} checks passed.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
