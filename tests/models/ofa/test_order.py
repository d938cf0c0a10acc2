"""Parameters are counted as the original counts them, since the slots of a saved optimizer have no names."""

import pytest
import torch

from models.ofa import OFA, OFAConfig
from models.ofa.order import ORDER


@pytest.mark.parametrize("size", ["tiny", "medium", "base", "large", "huge"])
def test_order_is_the_originals(size, golden):
    with torch.device("meta"):
        model = OFA(OFAConfig.from_arch(f"ofa_{size}"))
    expected = list(golden(f"state_dict_{size}.json")["state_dict"])
    assert list(model.state_dict()) == expected
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name in expected if name in set(names)] and len(names) > 400


def test_every_child_of_an_ordered_module_has_its_place():
    options = dict(scale_resids=True, num_images=2, encoder_drop_path_rate=0.1, decoder_drop_path_rate=0.1)
    with torch.device("meta"):
        model = OFA(OFAConfig.from_arch("ofa_tiny", **options))
    for module in model.modules():
        if type(module) in ORDER:
            weighted = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
            assert weighted == list(ORDER[type(module)])
