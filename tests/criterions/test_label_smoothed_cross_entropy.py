"""The registered loss through the whole model, against figures of the original."""

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq.logging import metrics
from loss_cases import make_batch
from torch import nn

from criterions.encouraging_loss import AdjustLabelSmoothedEncouragingLossCriterion, EncouragingLossConfig
from criterions.label_smoothed_cross_entropy import (
    AdjustLabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyConfig,
)
from models.fairseq_ofa import FairseqOFA
from models.ofa import OFAConfig
from utils.errors import UserError

KINDS = {
    "cross_entropy": (AdjustLabelSmoothedCrossEntropyCriterion, LabelSmoothedCrossEntropyConfig),
    "encouraging": (AdjustLabelSmoothedEncouragingLossCriterion, EncouragingLossConfig),
}
RUNS = [
    "ce_eps0", "ce_eps0.1", "ce_drop_worst", "ce_drop_worst_not_yet", "ce_rdrop", "ce_rdrop_drop_worst",
    "ce_ignore_eos", "ce_ignore_prefix2", "ce_sentence_avg", "ce_conf", "ce_constraint_range",
    "ce_constraint_range_ignore_eos", "ce_constraint_masks", "ce_constraint_masks_conf", "encouraging_log_end0.75",
    "encouraging_eps0", "encouraging_drop_worst", "encouraging_constraint_masks",
]  # fmt: skip


def make_criterion(kind="cross_entropy", **options):
    criterion, config = KINDS[kind]
    task = SimpleNamespace(target_dictionary=SimpleNamespace(pad=lambda: 1, eos=lambda: 2))
    return criterion(replace(config(), **{"sentence_avg": False, **options}), task)


@pytest.fixture(scope="module")
def model():
    from weights import fill_

    return fill_(FairseqOFA(OFAConfig.from_arch("ofa_tiny"))).eval()


@pytest.mark.parametrize("name", [*RUNS, "pretraining_sampled20", "pretraining_all_patches"])
def test_loss_and_gradients(name, golden, model):
    losses = golden("losses_tiny.json")
    run = losses["model_runs"][name]
    criterion = make_criterion(run["criterion"], **run["options"])
    sample = make_batch(losses, run["batch"])
    criterion.patch_generator = random.Random(run.get("python_seed"))
    global_state = random.getstate()
    model.zero_grad()
    loss, sample_size, logged = criterion(model, sample, update_num=run["update_num"])
    loss.backward()
    assert random.getstate() == global_state
    assert loss.item() == pytest.approx(run["loss"], rel=1e-5)
    assert sample_size == run["sample_size"]
    for key, value in run["log"].items():
        assert float(logged[key]) == pytest.approx(value, rel=1e-5), key
    gradients = {n: p.grad.double().norm().item() for n, p in model.named_parameters() if p.grad is not None}
    total = np.sqrt(sum(g**2 for g in gradients.values()))
    assert total == pytest.approx(run["gradient_norm"], rel=1e-4)
    for parameter, norm in run["gradient_norms"].items():
        assert gradients.get(parameter, 0.0) == pytest.approx(norm or 0.0, rel=1e-4), parameter


def test_accuracy_counts_unpadded_tokens(golden, model):
    sample = make_batch(golden("losses_tiny.json"), "caption")
    with torch.no_grad():
        logged = make_criterion(report_accuracy=True)(model, sample)[2]
        best = model(**sample["net_input"])[0].argmax(-1)
    real = sample["target"] != 1
    assert logged["total"] == int(real.sum())
    assert logged["n_correct"] == int((best == sample["target"])[real].sum())


@pytest.mark.parametrize(
    "kind, options",
    [
        ("cross_entropy", {"label_smoothing": 1.5}),
        ("cross_entropy", {"drop_worst_ratio": -0.1}),
        ("cross_entropy", {"constraint_range": "5"}),
        ("encouraging", {"label_smoothing": 1.5}),
        ("encouraging", {"drop_best_ratio": 1.0}),
        ("encouraging", {"log_end": 2.0}),
    ],
)
def test_bad_options_are_refused(kind, options):
    with pytest.raises(UserError, match="--"):
        make_criterion(kind, **options)


VOCABULARY, WIDTH = 12, 6
TARGET = torch.tensor([[5, 7, 2], [6, 2, 1]])


class Network(nn.Module):
    """Features that depend on the tokens, and one table for input and output, as in the real one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.heads = []

    def forward(self, prev_output_tokens, head):
        features = self.mix(self.table(prev_output_tokens)).cumsum(1)
        self.heads.append(head.func.__name__)
        return head(features, self.table.weight), {}


def small_batch(target=TARGET, **more):
    previous = torch.cat([torch.zeros(len(target), 1, dtype=torch.long), target[:, :-1]], 1)
    counts = {"ntokens": int((target != 1).sum()), "nsentences": len(target)}
    return {**counts, "target": target, "net_input": {"prev_output_tokens": previous}, **more}


def result(criterion, sample, update_num=1):
    """Loss, sample size and all gradients, on a model of its own."""
    model = Network()
    loss, sample_size, logged = criterion(model, sample, update_num=update_num)
    loss.backward()
    return loss, sample_size, logged, [p.grad for p in model.parameters()], model.heads


PAIRS = {
    "constraint_rows": torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 4]),  # b * T + t
    "constraint_ids": torch.tensor([5, 8, 7, 9, 2, 2, 6, 4, 2]),
}


@pytest.mark.parametrize(
    "kind, options",
    [
        ("cross_entropy", {"label_smoothing": 0.1}),
        ("cross_entropy", {"label_smoothing": 0.1, "use_rdrop": True}),
        ("cross_entropy", {"constraint_range": "4,10", "report_accuracy": True}),
        ("encouraging", {"label_smoothing": 0.1, "drop_best_ratio": 0.3}),
    ],
)
def test_pairs_of_allowed_ids_mean_the_same_as_a_mask(kind, options):
    masks = torch.zeros(2 * 3, VOCABULARY, dtype=torch.bool)
    masks[PAIRS["constraint_rows"], PAIRS["constraint_ids"]] = True
    criterion = make_criterion(kind, **options)
    dense = result(criterion, small_batch(constraint_masks=masks.view(2, 3, VOCABULARY)))
    assert torch.isfinite(dense[0])
    torch.testing.assert_close(result(criterion, small_batch(**PAIRS))[:4], dense[:4])
    assert not torch.isclose(result(criterion, small_batch())[0], dense[0])


@pytest.mark.parametrize("options", [{"drop_worst_ratio": 0.3}, {"constraint_range": "4,10"}, {}])
def test_chunked_loss_equals_the_loss_of_all_logits(options):
    """`report_accuracy` makes no difference but takes all logits at a time."""
    sample = small_batch(conf=torch.tensor([0.5, 2.0]))
    chunked = result(make_criterion(label_smoothing=0.1, **options), sample)
    whole = result(make_criterion(label_smoothing=0.1, report_accuracy=True, **options), sample)
    assert chunked[4] == ["linear_cross_entropy"] and whole[4] == ["_project"]
    torch.testing.assert_close(chunked[0], whole[0])
    torch.testing.assert_close(chunked[3], whole[3])
    assert chunked[1] == whole[1] and float(chunked[2]["nll_loss"]) == pytest.approx(float(whole[2]["nll_loss"]))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(
    "kind, options",
    [
        ("cross_entropy", {"drop_worst_ratio": 0.2}),
        ("cross_entropy", {"use_rdrop": True, "report_accuracy": True}),
        ("cross_entropy", {"constraint_range": "4,10"}),
        ("encouraging", {"drop_worst_ratio": 0.2, "drop_best_ratio": 0.2}),
    ],
)
def test_batch_without_counted_tokens_costs_nothing(kind, options, pairs):
    nobody = torch.zeros(0, dtype=torch.long)
    more = {"constraint_rows": nobody, "constraint_ids": nobody} if pairs else {}
    sample = small_batch(torch.ones_like(TARGET), **more)
    loss, sample_size, logged, gradients, _ = result(make_criterion(kind, label_smoothing=0.1, **options), sample)
    assert (loss.item(), sample_size, float(logged["nll_loss"])) == (0.0, 0, 0.0)
    assert not any(gradient.any() for gradient in gradients)
    with metrics.aggregate(new_root=True) as shown:
        AdjustLabelSmoothedCrossEntropyCriterion.reduce_metrics([logged])
    assert shown["loss"].avg == 0


def test_rdrop_leaves_the_batch_and_what_is_not_a_tensor_alone():
    plain = {"references": [["a"], ["b"]], "info": {"names": ["x", "y"]}, "conf": None}
    sample = small_batch(id=np.array(["3", "4"]), **plain, **PAIRS)
    _, sample_size, logged, _, _ = result(make_criterion(use_rdrop=True), sample)
    assert sample_size == logged["ntokens"] == 10 and logged["nsentences"] == 4
    assert sample["target"] is TARGET and sample["nsentences"] == 2 and sample["references"] == [["a"], ["b"]]


def test_best_tokens_are_left_out_only_after_their_update():
    criterion = make_criterion("encouraging", drop_best_ratio=0.4, drop_best_after=5, report_accuracy=True)
    sizes = [result(criterion, small_batch(), update_num)[1] for update_num in (0, 5, 6)]
    assert sizes == [5, 5, 3]
    assert result(criterion, small_batch(), 6)[2]["total"] == 5


def test_head_works_in_a_wrapper_with_recomputed_layers(tmp_path):
    """Under PyTorch's data parallelism and activation checkpoints, with the tied table in the loss."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.nn.parallel import DistributedDataParallel

    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        grads = {}
        for wrapped in (False, True):
            torch.manual_seed(0)
            size = dict(vocab_size=90, num_images=1, checkpoint_activations=wrapped)
            network = FairseqOFA(OFAConfig.from_arch("ofa_demo", **size))
            model = DistributedDataParallel(network, find_unused_parameters=True) if wrapped else network
            sample = small_batch(TARGET)
            sample["net_input"]["src_tokens"] = torch.tensor([[0, 5, 6, 2], [0, 8, 2, 1]])
            loss, _, _ = make_criterion(label_smoothing=0.1)(model, sample)
            loss.backward()
            grads[wrapped] = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        assert grads[True].keys() >= grads[False].keys() and grads[False]["encoder.embed_tokens.weight"].any()
        for name, gradient in grads[False].items():
            torch.testing.assert_close(grads[True][name], gradient, msg=name)
    finally:
        destroy_process_group()


def test_half_precision_model_gets_half_precision_gradients():
    model = FairseqOFA(OFAConfig.from_arch("ofa_demo", vocab_size=90)).to(torch.bfloat16)
    sample = small_batch(TARGET)
    sample["net_input"]["src_tokens"] = torch.tensor([[0, 5, 6, 2], [0, 8, 2, 1]])
    loss, _, _ = make_criterion(label_smoothing=0.1)(model, sample)
    loss.backward()
    table = model.encoder.embed_tokens.weight
    assert loss.dtype == torch.float32 and table.grad.dtype == torch.bfloat16 and table.grad.isfinite().all()


def test_an_absent_part_counts_nothing_and_the_parts_are_logged():
    criterion = make_criterion()
    one = result(criterion, [small_batch(), {}])
    plain = result(criterion, small_batch())
    assert one[1] == 1 and one[0].item() == pytest.approx(plain[0].item() / plain[1])
    with metrics.aggregate(new_root=True) as shown:
        criterion.reduce_metrics([result(criterion, [small_batch(), small_batch()])[2]])
    assert shown["loss_v1"].avg == pytest.approx(shown["loss_v2"].avg) == pytest.approx(shown["loss"].avg / 2)
