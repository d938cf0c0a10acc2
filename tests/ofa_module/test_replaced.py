"""What of fairseq is replaced while we train: put back afterwards, and each line that is named is there."""

import inspect
from types import SimpleNamespace

import pytest

from ofa_module.replaced import Replacement, replaced
from ofa_module.trainer import REPLACED, OFATrainer


def test_names_are_put_back_whatever_happens():
    owner = SimpleNamespace(one=1, two=2)
    with (
        pytest.raises(ZeroDivisionError),
        replaced(Replacement(owner, "one", 5, "", ""), Replacement(owner, "two", 6, "", "")),
    ):
        assert (owner.one, owner.two) == (5, 6)
        raise ZeroDivisionError
    assert (owner.one, owner.two) == (1, 2)


def test_a_static_method_stays_one():
    class Owner:
        @staticmethod
        def double(value):
            return 2 * value

    with replaced(Replacement(Owner, "double", staticmethod(lambda value: 3 * value), "", "")):
        assert Owner.double(2) == Owner().double(2) == 6
    assert Owner.double(2) == Owner().double(2) == 4


@pytest.mark.parametrize("item", REPLACED, ids=lambda item: item.name)
def test_the_line_that_a_replacement_stands_for_is_in_fairseq(item):
    assert item.line in inspect.getsource(item.file or item.owner) and item.why
    assert vars(item.owner)[item.name] is not item.by  # outside of training


def test_the_reader_is_replaced_where_the_stock_trainer_reads():
    stock = inspect.getsource(OFATrainer.__base__.load_checkpoint)
    assert "state = checkpoint_utils.load_checkpoint_to_cpu(" in stock
    assert "load_checkpoint_to_cpu" in inspect.getsource(OFATrainer.load_checkpoint)
