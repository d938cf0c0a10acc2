"""Many items through a predictor: chunks, images read ahead and once, memory that runs out."""

import threading
from types import SimpleNamespace

import pytest
import torch

from data.items import Item, Source
from models.predictor.stream import Counts, Lines, Parts, Stream, adopt
from utils.errors import ItemError, UserError
from utils.record_file import RecordFile
from utils.record_parts import RecordParts

NAMES = ("id", "image", "question")


def source(items):
    return Source(len(items), lambda numbers, *_: iter(items[numbers.start : numbers.stop]))


def questions(count, start=0):
    return [
        Item(f"row {n}", f"q{n}", {"image": f"{n // 3}.png", "question": "who?"}) for n in range(start, start + count)
    ]


class Answering:
    """A predictor that answers with the numbers it was asked together."""

    def __init__(self, fits=100):
        self.batch_size, self.fits, self.calls, self.read, self.threads = 8, fits, [], [], set()

    def prepare(self, image):
        self.read.append(image)
        self.threads.add(threading.current_thread())
        if image.startswith("bad"):
            raise UserError("The image cannot be used")
        return f"prepared {image}"

    def __call__(self, values):
        if self.batch_size > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if "long" in values["question"]:
            raise ItemError("too long")
        self.calls.append(values["number"])
        assert all(image.startswith("prepared ") for image in values["image"])
        return [{"answer": values["number"], "score": 1.0} for _ in values["number"]]


def stream(predictor, total, size=4, **more):
    return Stream(predictor, predictor, NAMES, ("image", "question"), {}, size, 2, total, **more)


def run(predictor, items, path, **more):
    with RecordFile(path, "answer") as output:
        return stream(predictor, len(items), **more).run([source(items)], Lines(output), set(), set())


def test_what_is_answered_together_depends_on_numbers_only(tmp_path):
    whole, items = Answering(), questions(10)
    counts = run(whole, items, tmp_path / "a.jsonl")
    assert (counts.written, counts.skipped, counts.before) == (10, 0, 0)
    assert whole.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    for kept in range(11):
        (tmp_path / "b.jsonl").write_bytes(b"".join(lines[:kept]))
        again = Answering()
        counts = run(again, items, tmp_path / "b.jsonl")
        assert (tmp_path / "b.jsonl").read_bytes() == b"".join(lines)
        assert again.calls == [call for call in whole.calls if call[-1] >= kept] and counts.before == kept


def test_an_image_is_read_once_in_a_chunk_and_in_another_thread(tmp_path):
    predictor = Answering()
    run(predictor, questions(8), tmp_path / "a.jsonl")
    assert sorted(predictor.read) == ["0.png", "1.png", "1.png", "2.png"]
    assert threading.main_thread() not in predictor.threads


def test_several_sources_are_one_row_of_items(tmp_path):
    predictor, items = Answering(), questions(10)
    with RecordFile(tmp_path / "a.jsonl", "answer") as output:
        sources = [source(items[:1]), source(items[1:3]), source(items[3:])]
        stream(predictor, 10).run(sources, Lines(output), set(), set())
    assert predictor.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_what_is_wrong_costs_its_item_only(tmp_path, capsys):
    items = questions(8)
    items[1].values["image"] = "bad.png"
    items[2].values["question"] = " "
    items[5].values["question"] = "long"
    items[7].problem = "it is not a JSON object"
    predictor = Answering()
    counts = run(predictor, items, tmp_path / "a.jsonl")
    assert (counts.written, counts.skipped) == (4, 4) and predictor.calls == [[0, 3], [4], [6]]
    said = capsys.readouterr().err
    for reason in ("row 1: The image cannot", "row 2: the text has no", "row 5: too long", "row 7: it is not a JSON"):
        assert reason in said
    again = Answering()  # nothing that can be answered is left
    assert run(again, items, tmp_path / "a.jsonl").skipped == 4 and not again.calls


def test_an_image_that_is_gone_since_it_was_asked_about_is_no_failure(tmp_path, capsys):
    items = questions(4)
    run(Answering(), items, tmp_path / "a.jsonl")
    kept = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)[:3]
    (tmp_path / "a.jsonl").write_bytes(b"".join(kept))
    for item in items[:3]:
        item.values["image"] = "bad.png"
    counts = run(Answering(), items, tmp_path / "a.jsonl")
    assert (counts.written, counts.skipped, counts.before) == (1, 0, 3) and "skipped" not in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_halved_and_said_once(tmp_path, capsys):
    predictor = Answering(fits=2)
    assert run(predictor, questions(10), tmp_path / "a.jsonl").written == 10 and predictor.batch_size == 2
    assert capsys.readouterr().err.count("--batch-size 8 does not fit into memory: going on with smaller") == 1
    with pytest.raises(UserError, match="One item alone does not fit into memory"):
        run(Answering(fits=0), questions(1), tmp_path / "b.jsonl")


def test_other_errors_are_not_taken_for_memory(tmp_path):
    predictor = Answering()
    broken = Stream(predictor, lambda values: 1 / 0, NAMES, ("image",), {}, 4, 1, 1)
    with RecordFile(tmp_path / "a.jsonl", "answer") as output, pytest.raises(ZeroDivisionError):
        broken.run([source(questions(1))], Lines(output), set(), set())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_chunks_and_write_what_one_writes(world, tmp_path):
    items = questions(23)
    items[6].values["question"] = ""
    items[20].id = "q1"
    run(Answering(), items, tmp_path / "one.jsonl")
    asked = []
    for rank in range(world):
        parts = RecordParts(tmp_path / "many.jsonl", "run", len(items))
        predictor = Answering()
        ledger = Parts(parts, rank, world, 4)
        stream(predictor, len(items)).run([source(items)], ledger, set(), set())
        asked += predictor.calls
        parts.close()
    assert len(asked) == 6
    RecordParts(tmp_path / "many.jsonl", "run", len(items)).merge()
    assert (tmp_path / "many.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_records_of_one_process_are_taken_over_by_several(tmp_path):
    items = questions(10)
    items[3].id = items[8].id = "q1"
    path = tmp_path / "a.jsonl"
    run(Answering(), items, path)
    whole = path.read_bytes().splitlines(keepends=True)
    for kept in ([], [0, 1, 2], [1, 3], [8], [0, 2, 8], range(10)):
        path.write_bytes(b"".join(whole[row] for row in kept))
        parts = RecordParts(path, "run", 10)
        adopt(parts, RecordFile(path, "answer"), items)
        assert [number for number in range(10) if parts.there[number]] == list(kept)
        predictor, ledger = Answering(), Parts(parts, 0, 1, 4)
        finished = ledger.finished()
        counts = stream(predictor, 10, finished=finished).run([source(items)], ledger, set(), set())
        assert counts.written == 10 - len(kept) and finished + counts.before == len(kept)
        parts.close()
        parts.merge()
        assert path.read_bytes() == b"".join(whole)


def test_progress_in_a_log_says_rate_and_time_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("models.predictor.stream.LOG_SECONDS", 0)
    done = SimpleNamespace(count=0)

    def counted(more):
        done.count += more + 1  # another process answers one as well
        return done.count

    run(Answering(), questions(10), tmp_path / "a.jsonl", counted=counted, finished=2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("7 of 10 items, ") and "a second, 00:0" in lines[0] and len(lines) == 3
    run(Answering(), questions(10), tmp_path / "b.jsonl", shown=False)
    assert not capsys.readouterr().err


def test_time_is_counted(tmp_path):
    counts = run(Answering(), questions(3), tmp_path / "a.jsonl")
    assert isinstance(counts, Counts) and 0 <= counts.waited <= counts.seconds
