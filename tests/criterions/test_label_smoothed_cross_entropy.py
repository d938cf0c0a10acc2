"""The registered loss through the whole network, against figures of the original."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from criterions.label_smoothed_cross_entropy import AdjustLabelSmoothedCrossEntropy
from models.fairseq_ofa import FairseqOFA
from models.ofa import OFAConfig
from utils.errors import UserError

DEFAULTS = dict(
    sentence_avg=False,
    label_smoothing=0.0,
    report_accuracy=False,
    ignore_prefix_size=0,
    ignore_eos=False,
    drop_worst_ratio=0.0,
    drop_worst_after=0,
    use_rdrop=False,
    reg_alpha=1.0,
    constraint_range=None,
)
RUNS = [
    "ce_eps0", "ce_eps0.1", "ce_drop_worst", "ce_drop_worst_not_yet", "ce_rdrop", "ce_rdrop_drop_worst",
    "ce_ignore_eos", "ce_ignore_prefix2", "ce_sentence_avg", "ce_conf", "ce_constraint_range",
    "ce_constraint_range_ignore_eos", "ce_constraint_masks", "ce_constraint_masks_conf",
]  # fmt: skip


def make_criterion(**options):
    dictionary = SimpleNamespace(pad=lambda: 1, eos=lambda: 2)
    return AdjustLabelSmoothedCrossEntropy(SimpleNamespace(target_dictionary=dictionary), **{**DEFAULTS, **options})


@pytest.fixture(scope="module")
def model():
    from weights import fill_

    return fill_(FairseqOFA(OFAConfig.from_arch("ofa_tiny"))).eval()


def _pictures(batch, seed, size):
    """Pictures of a batch recipe: drawn after the source and target ids."""
    rng = np.random.default_rng(seed)
    src, target = np.array(batch["src_tokens"]), np.array(batch["target"])
    low, high = (58457, 59457) if seed == 501 else (4, 50000)
    rng.integers(4, 50000, src.shape)
    rng.integers(low, high, target.shape)
    return rng.standard_normal((len(src), 3, size, size), dtype=np.float32)


def _constraint_masks(batch):
    rng = np.random.default_rng(503)
    target = np.array(batch["target"])
    masks = torch.zeros(*target.shape, 59457, dtype=torch.bool)
    for row, position in zip(*np.nonzero(target != 1), strict=True):
        masks[row, position, torch.from_numpy(rng.integers(4, 50000, 20))] = True
        masks[row, position, target[row, position]] = True
    return masks


def _sample(golden_losses, name):
    stored = golden_losses["batches"][name.split(" ")[0]]
    seed, size = {"caption": (500, 128), "boxes": (501, 128), "answers": (502, 64)}[name.split(" ")[0]]
    target = torch.tensor(stored["target"])
    pictures = _pictures(stored, seed, size)
    np.testing.assert_array_equal(pictures.ravel()[:8], np.float32(stored["patch_images_first8"]))
    sample = {
        "nsentences": target.size(0),
        "ntokens": int((target != 1).sum()),
        "target": target,
        "net_input": {
            "src_tokens": torch.tensor(stored["src_tokens"]),
            "prev_output_tokens": torch.tensor(stored["prev_output_tokens"]),
            "patch_images": torch.from_numpy(pictures),
            "patch_masks": torch.tensor(stored["patch_masks"]),
        },
    }
    if "conf" in name:
        sample["conf"] = torch.tensor(golden_losses["conf"])[: target.size(0)]
    if name.startswith("answers"):
        sample["constraint_masks"] = _constraint_masks(stored)
    return sample


@pytest.mark.parametrize("name", RUNS)
def test_loss_and_gradients(name, golden, model):
    losses = golden("losses_tiny.json")
    run = losses["model_runs"][name]
    criterion = make_criterion(**run["options"])
    sample = _sample(losses, run["batch"])
    model.zero_grad()
    loss, sample_size, logged = criterion(model, sample, update_num=run["update_num"])
    loss.backward()
    assert loss.item() == pytest.approx(run["loss"], rel=1e-5)
    assert sample_size == run["sample_size"]
    for key, value in run["log"].items():
        assert float(logged[key]) == pytest.approx(value, rel=1e-5), key
    gradients = {n: p.grad.double().norm().item() for n, p in model.named_parameters() if p.grad is not None}
    total = np.sqrt(sum(g**2 for g in gradients.values()))
    assert total == pytest.approx(run["gradient_norm"], rel=1e-4)
    for parameter, norm in run["gradient_norms"].items():
        assert gradients.get(parameter, 0.0) == pytest.approx(norm or 0.0, rel=1e-4), parameter


def test_batch_stays_as_it_is_under_rdrop(golden, model):
    sample = _sample(golden("losses_tiny.json"), "caption")
    with torch.no_grad():
        make_criterion(use_rdrop=True)(model, sample)
    assert sample["target"].size(0) == 4 and sample["nsentences"] == 4


def test_accuracy_counts_unpadded_tokens(golden, model):
    sample = _sample(golden("losses_tiny.json"), "caption")
    with torch.no_grad():
        logged = make_criterion(report_accuracy=True)(model, sample)[2]
        best = model(**sample["net_input"])[0].argmax(-1)
    real = sample["target"] != 1
    assert logged["total"] == int(real.sum())
    assert logged["n_correct"] == int((best == sample["target"])[real].sum())


@pytest.mark.parametrize("options", [{"label_smoothing": 1.5}, {"drop_worst_ratio": -0.1}, {"constraint_range": "5"}])
def test_bad_options_are_refused(options):
    with pytest.raises(UserError, match="--"):
        make_criterion(**options)
