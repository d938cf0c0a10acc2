"""The output of predict.py: what is ours goes on, what is not is left as it is."""

import json
import os

import pytest

from utils.errors import UserError
from utils.record_file import RecordFile

RECORD = json.dumps({"id": 'a "b" \\ ü', "caption": "x", "score": -1.0}).encode() + b"\n"
NOT_OURS = {
    "notes without a newline": b"buy milk",
    "notes": b"buy milk\n",
    "notes behind records": RECORD + b"buy milk",
    "scores of evaluate.py": b'[{"image_id": 1, "caption": "a"}]',
    "an object": b'{"image_id": 1, "caption": "a"}',
    "an object with an id": b'{"id": 1, "image": "a.png"}',
    "an object with an id and a text": b'{"id": "1", "text": "a"}',
    "records of another command": b'{"id": 1, "answer": "a", "score": 1}\n',
    "an input with references": b'{"id": 1, "image": "a.png", "caption": "a"}\n',
    "scores of somebody else's": b'{"id": 1, "caption": "a", "image": "a.png", "score": 5}\n',
    "captions without scores": b'{"id": 1, "caption": "a"}\n',
    "an odd id": b'{"id": [1], "caption": "a", "score": 1}\n',
    "a list": b"[1, 2]\n",
    "bytes": bytes(range(256)),
    "zeros": bytes(100),
    "deep nonsense": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("content", NOT_OURS.values(), ids=NOT_OURS)
def test_what_is_not_ours_is_left_as_it_is(content, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"out\.jsonl.*: name another file"), RecordFile(path, "caption") as file:
        file.write(RECORD)
    assert path.read_bytes() == content


def test_every_cut_of_our_own_file_goes_on_and_is_not_touched_before(tmp_path):
    path, second = tmp_path / "out.jsonl", RECORD.replace(b'"a', b'"c')
    for length in range(len(RECORD + second)):
        content = (RECORD + second)[:length]
        path.write_bytes(content)
        file = RecordFile(path, "caption")
        assert path.read_bytes() == content and len(file.ids) == content.count(b"\n")
        with file:
            file.write(b"more\n")
        assert path.read_bytes() == content[: content.rfind(b"\n") + 1] + b"more\n"


def test_nothing_is_made_by_a_run_that_fails(tmp_path):
    with pytest.raises(KeyError), RecordFile(tmp_path / "a" / "out.jsonl", "caption"):
        raise KeyError
    assert not (tmp_path / "a").exists()
    with RecordFile(tmp_path / "a" / "out.jsonl", "caption"):
        pass
    assert (tmp_path / "a" / "out.jsonl").read_bytes() == b""


def test_a_file_that_changed_meanwhile_is_left(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(RECORD[:9])
    with pytest.raises(UserError, match="changed by another program"), RecordFile(path, "caption") as file:
        path.write_bytes(RECORD)
        file.write(b"more\n")
    assert path.read_bytes() == RECORD


def test_inputs_pipes_folders_and_places_below_a_file_are_refused(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"")
    os.symlink(path, tmp_path / "link.jsonl")
    with pytest.raises(UserError, match="is an input"):
        RecordFile(path, "caption", [tmp_path / "gone", tmp_path / "link.jsonl"])
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="not a regular file"):
            RecordFile(place, "caption")
    with pytest.raises(UserError, match="cannot be written"):
        RecordFile(path / "below.jsonl", "caption")
    with RecordFile(tmp_path.__class__("/dev/null"), "caption") as file:
        file.write(RECORD)
