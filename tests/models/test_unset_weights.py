"""Loading draws no random numbers, but for weights that a file lacks."""

import pytest
import torch

from models.ofa.model import INIT_STD
from models.unset_weights import UnsetWeights
from models.weights import load_model
from utils.checkpoint import load_checkpoint, save_checkpoint


def test_models_hold_what_was_in_memory():
    before = torch.get_rng_state()
    with UnsetWeights():
        linear, norm = torch.nn.Linear(3, 4), torch.nn.LayerNorm(3)
        assert torch.empty(2).normal_().shape == (2,) and torch.nn.init.zeros_(linear.bias).tolist() == [0] * 4
    assert torch.equal(torch.get_rng_state(), before) and norm.weight.tolist() == [1] * 3
    assert torch.nn.Linear(3, 4).weight.abs().max() > 0 and not torch.equal(torch.get_rng_state(), before)


def test_loading_draws_nothing(save_small_network, tmp_path):
    path = save_small_network(tmp_path / "a.pt")
    before = torch.get_rng_state()
    state = load_model(path).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[name], value) for name, value in load_checkpoint(path)["model"].items())


@pytest.mark.parametrize("seed", range(3))
def test_weights_that_a_file_lacks_are_drawn(seed, save_small_network, tmp_path, caplog):
    checkpoint = load_checkpoint(save_small_network(tmp_path / "a.pt"))
    name = "encoder.token_rel_pos_table_list.0.weight"
    del checkpoint["model"][name]
    save_checkpoint(checkpoint, tmp_path / "b.pt")
    torch.manual_seed(seed)
    weight = load_model(tmp_path / "b.pt").state_dict()[name]
    assert "lacks weights, left at random" in caplog.text
    assert weight.std().item() == pytest.approx(INIT_STD, rel=0.2) and weight.abs().max() < 0.2
