"""Batches of jobs: which are answered together, in which order, and what one that fails does to the others."""

import threading
import time

import pytest

from models.server.batching import Batcher, FullError, Places


class Model:
    """Records batches; the first one waits for `go`."""

    def __init__(self):
        self.batches, self.go, self.begun = [], threading.Event(), threading.Event()

    def __call__(self, key, items):
        self.batches.append((key, items))
        self.begun.set()
        assert self.go.wait(30)
        if "bad" in items:
            raise ValueError("bad")
        return [item.upper() for item in items]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def batcher(model):
    made = Batcher(model, size=3, wait=0.0)
    yield made
    model.go.set()
    assert made.close(30)


def busy(batcher, model):
    """The model is computing."""
    first = batcher.submit("first", "a")
    assert model.begun.wait(30)
    return first


def test_jobs_of_a_key_are_answered_together_the_oldest_first(batcher, model):
    busy(batcher, model)
    jobs = [batcher.submit(key, item) for key, item in zip("yxyxyxyx", "abcdefgh", strict=True)]
    assert batcher.waiting == 8
    model.go.set()
    assert [job.future.result(30) for job in jobs] == list("ABCDEFGH")
    assert model.batches[1:] == [("y", ["a", "c", "e"]), ("x", ["b", "d", "f"]), ("y", ["g"]), ("x", ["h"])]


def test_a_job_that_fails_does_not_spoil_the_others(batcher, model):
    busy(batcher, model)
    jobs = [batcher.submit("x", item) for item in ("a", "bad", "c")]
    model.go.set()
    assert jobs[0].future.result(30) == "A" and jobs[2].future.result(30) == "C"
    with pytest.raises(ValueError, match="bad"):
        jobs[1].future.result(30)
    assert batcher.alive and batcher.submit("x", "d").future.result(30) == "D"


def test_a_model_that_says_too_little_is_an_error_of_the_job():
    batcher = Batcher(lambda key, items: items[1:], size=3, wait=0.0)
    with pytest.raises(ValueError):
        batcher.submit("x", "a").future.result(30)
    assert batcher.alive and batcher.close(30)


def test_jobs_that_nobody_waits_for_are_not_computed(batcher, model):
    busy(batcher, model)
    jobs = [batcher.submit(key, item) for key, item in (("x", "a"), ("x", "b"), ("y", "c"))]
    jobs[0].gone = jobs[2].gone = True
    model.go.set()
    assert jobs[1].future.result(30) == "B"
    assert batcher.submit("z", "d").future.result(30) == "D"
    assert model.batches[1:] == [("x", ["b"]), ("z", ["d"])]


def test_a_job_waits_for_others_but_not_longer():
    model = Model()
    model.go.set()
    batcher = Batcher(model, size=2, wait=0.2)
    began = time.monotonic()
    assert batcher.submit("x", "a").future.result(30) == "A" and time.monotonic() - began >= 0.2
    batcher.wait = 60.0
    jobs = [batcher.submit("x", item) for item in "bc"]  # a whole batch does not wait
    assert [job.future.result(30) for job in jobs] == ["B", "C"] and model.batches[1] == ("x", ["b", "c"])
    job = batcher.submit("x", "d")  # closing does not either
    assert batcher.close(30) and job.future.result(0) == "D"


def test_closing_answers_what_is_queued(batcher, model):
    first = busy(batcher, model)
    second = batcher.submit("x", "b")
    assert not batcher.close(0.01)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit("x", "c")
    model.go.set()
    assert batcher.close(30) and not batcher.alive
    assert (first.future.result(0), second.future.result(0)) == ("A", "B")


def test_places():
    places = Places(2)
    with places, places:
        with pytest.raises(FullError), places:
            pass
        assert places.taken == 2
    assert places.taken == 0
    with pytest.raises(KeyError), places:
        raise KeyError
    assert places.taken == 0
