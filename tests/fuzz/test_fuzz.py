"""A few seconds of every fuzzer; long runs are started by hand, as their files say."""

import random
from contextlib import suppress

import pytest

from data.text import Vocabulary
from data.validate import BPE_DIR
from tests.fuzz import damage, hostile, nonsense, rows
from utils.errors import UserError


@pytest.mark.parametrize("kind", damage.FORMATS)
def test_damaged_files_are_refused_or_unchanged(kind, tmp_path):
    found = damage.run(kind, 12, 0, tmp_path)
    assert found.total() == 24 and not damage.faults(found)


@pytest.mark.parametrize("reader", hostile.READERS)
def test_hostile_files_run_nothing(reader):
    names = random.Random(reader).sample(list(hostile.CALLS), 3)
    found, wrong = hostile.run({reader: hostile.READERS[reader]}, {name: hostile.CALLS[name] for name in names})
    assert found.total() == 3 * 17 and not wrong


def test_a_call_is_one():
    """What the fuzzer writes is as dangerous as it looks: an ordinary reader runs it."""
    assert hostile.pickle.loads(hostile.pickled({"x": hostile.Call("builtins", "abs", (-3,))})) == {"x": 3}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return nonsense.Nonsense(tmp_path_factory.mktemp("nonsense"))


@pytest.mark.parametrize("value", [None, {}])
def test_every_option_of_a_folder(odd, value):
    """Of config.json, which says all where the weights carry no card."""
    for name in odd.config:
        with suppress(UserError):
            odd.read_config({**odd.config, name: value})


@pytest.mark.parametrize("kind", nonsense.KINDS)
def test_nonsense_is_refused_in_a_sentence(odd, kind):
    assert [fault for _ in range(4) if (fault := odd.run(*odd.draw(kind)))] == []


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(BPE_DIR)


@pytest.mark.parametrize("task", rows.FILES)
def test_mutated_rows_are_good_or_named(task, tmp_path, vocab):
    found, wrong = rows.run(task, 12, 0, tmp_path, vocab)
    assert not wrong and found.total() == 12
