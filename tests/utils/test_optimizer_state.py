"""A saved optimizer's slots reach the parameters that they were of, whatever order a file has them in."""

import random

import pytest
import torch

from models.ofa import OFA, OFAConfig
from models.weights.upgrade import TOKEN_TABLES
from utils.errors import UserError
from utils.optimizer_state import fit, rename_criterions


def build(**options):
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("embed_dim", 16), ("layers", 2))}
    small = dict(vocab_size=40, image_bucket_size=8, code_image_size=32)
    return OFA(OFAConfig.from_arch("ofa_demo", **{**sizes, **small, **options}))


def earlier(name):
    """Sorts as our earlier versions registered: positions, tokens and layers in another order."""
    parts = name.split(".")
    late = ("self_attn", "self_attn_layer_norm", "attn_ln")
    return parts[0], parts[1] == "embed_tokens", parts[1] == "layers", parts[2:3], parts[-2] in late, name


ORDERS = {
    "today's": lambda names: names,
    "earlier": lambda names: sorted(names, key=earlier),
    "reversed": lambda names: names[::-1],
    "random": lambda names: random.Random(1).sample(names, len(names)),
}


def moment(name, shape, kind):
    """A tensor that only this parameter has."""
    return torch.full(shape, float(sum(map(ord, name)))) + torch.arange(shape.numel()).view(shape) / 1e3 + kind


def file_of(model, order, flat=False, missing=()):
    """Weights in an order of names, and what Adam wrote of parameters in that order."""
    entries = model.state_dict()
    weights = {name: entries[name] for name in ORDERS[order](list(entries))}
    trained = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    seen, params = set(), []
    for name in weights:
        if name in trained and id(trained[name]) not in seen:
            seen.add(id(trained[name]))
            params.append((name if name not in TOKEN_TABLES else TOKEN_TABLES[0], trained[name].shape))
    slots = {
        number: {"step": 7, "exp_avg": moment(name, shape, 0), "exp_avg_sq": moment(name, shape, 0.5)}
        for number, (name, shape) in enumerate(params)
        if name not in missing
    }
    if flat:
        vectors = {
            key: torch.cat([slot[key].flatten() for slot in slots.values()]) for key in ("exp_avg", "exp_avg_sq")
        }
        slots = {0: {"step": 7, **vectors}}
    groups = [{"lr": 0.5, "betas": (0.9, 0.999), "params": list(range(1 if flat else len(params)))}]
    return weights, {"state": slots, "param_groups": groups, "loss_scale": 128.0}


@pytest.mark.parametrize(
    "frozen", [{}, {"freeze_encoder_embedding": True, "freeze_resnet": True}], ids=["all", "frozen"]
)
@pytest.mark.parametrize("flat", [False, True], ids=["slots", "flat"])
@pytest.mark.parametrize("order", ORDERS)
def test_moments_arrive_at_their_parameters(order, flat, frozen):
    model = build(**frozen)
    weights, saved = file_of(model, order, flat)
    fitted = fit(saved, weights, model, "c.pt")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [{**saved["param_groups"][0], "params": list(range(len(named)))}]
    assert fitted["param_groups"] == groups and fitted["loss_scale"] == 128.0
    for kind, key in ((0, "exp_avg"), (0.5, "exp_avg_sq")):
        assert list(fitted["state"]) == list(range(len(named)))
        for slot, (name, p) in zip(fitted["state"].values(), named, strict=True):
            assert torch.equal(slot[key], moment(name, p.shape, kind)) and slot["step"] == 7, name


def test_slots_of_another_order_would_be_of_other_shapes():
    """What the slots by number would do: shapes differ for some, and for the others nothing would be noticed."""
    model = build()
    _, saved = file_of(model, "random")
    shapes = [p.shape for p in model.parameters()]
    unlike = sum(saved["state"][i]["exp_avg"].shape != shape for i, shape in enumerate(shapes))
    assert 0 < unlike < len(shapes)


def test_a_parameter_that_never_had_a_gradient_has_no_slot():
    model = build()
    missing = "decoder.image_pos_ln.weight"
    weights, saved = file_of(model, "random", missing=[missing])
    fitted = fit(saved, weights, model, "c.pt")
    number = [name for name, _ in model.named_parameters()].index(missing)
    assert number not in fitted["state"] and len(fitted["state"]) == len(list(model.parameters())) - 1


@pytest.mark.parametrize("table", TOKEN_TABLES)
def test_a_tied_table_stored_once(table):
    model = build()
    weights, saved = file_of(model, "today's")
    kept = {name: value for name, value in weights.items() if name not in TOKEN_TABLES or name == table}
    first = next(number for number, name in enumerate(dict(model.named_parameters())) if name == TOKEN_TABLES[0])
    if table == TOKEN_TABLES[0]:
        assert torch.equal(fit(saved, kept, model, "c.pt")["state"][first]["exp_avg"], saved["state"][first]["exp_avg"])
    else:  # by the names of the file the table is another slot, of another shape
        with pytest.raises(UserError, match="--reset-optimizer"):
            fit(saved, kept, model, "c.pt")


def test_factored_moments():
    """Adafactor keeps a row and a column of a matrix."""
    model = build()
    weights, saved = file_of(model, "reversed")
    for slot in saved["state"].values():
        matrix = slot.pop("exp_avg_sq")
        if matrix.dim() > 1:
            slot |= {"exp_avg_sq_row": matrix[..., 0], "exp_avg_sq_col": matrix[..., 0, :], "RMS": torch.tensor(0.5)}
    fitted = fit(saved, weights, model, "c.pt")
    for number, (name, p) in enumerate(model.named_parameters()):
        if p.dim() > 1:
            assert torch.equal(fitted["state"][number]["exp_avg_sq_row"], moment(name, p.shape, 0.5)[..., 0])


@pytest.mark.parametrize("flat", [False, True], ids=["slots", "flat"])
def test_other_frozen_parameters_are_refused(flat):
    weights, saved = file_of(build(), "today's", flat)
    with pytest.raises(
        UserError, match=r"c\.pt trains \d+ (parameters|weights), this run \d+: freeze the same.*--reset-opt"
    ):
        fit(saved, weights, build(freeze_encoder_embedding=True), "c.pt")


def test_what_does_not_fit_is_refused():
    model = build()
    weights, saved = file_of(model, "today's")
    with pytest.raises(UserError, match=r"encoder.embed_tokens.weight of shape \[40, 16\], here it is \[44, 16\]"):
        fit(saved, weights, build(vocab_size=44), "c.pt")
    with pytest.raises(UserError, match="has no weights encoder.layers.1"):
        fit(saved, {k: v for k, v in weights.items() if "layers.1." not in k}, model, "c.pt")
    groups = [{"params": [0, 1]}, {"params": list(range(2, len(saved["state"])))}]
    assert fit({**saved, "param_groups": groups}, weights, model, "c.pt")["state"].keys() == saved["state"].keys()
    weights, saved = file_of(model, "random")
    with pytest.raises(UserError, match="in groups"):
        fit({**saved, "param_groups": groups}, weights, model, "c.pt")
    saved["state"][3]["exp_avg"] = torch.zeros(3, 3)
    with pytest.raises(
        UserError, match=r"has exp_avg of shape \[3, 3\] for .*: it belongs to other weights, pass --reset"
    ):
        fit(saved, weights, model, "c.pt")


def test_names_of_earlier_criterions():
    history = [{"criterion_name": "AdjustLabelSmoothedCrossEntropy"}, {"criterion_name": "ScstRewardCriterion"}, {}]
    rename_criterions(history)
    names = [entry.get("criterion_name") for entry in history]
    assert names == ["AdjustLabelSmoothedCrossEntropyCriterion", "ScstRewardCriterion", None]
