"""Records of several processes: parts that are merged in input order, whatever was written twice, torn or skipped."""

import json

import pytest

from utils.errors import UserError
from utils.part_files import identity
from utils.record_parts import ANSWERED, NONE, SKIPPED, Entry, RecordParts


def answered(number, item_id=None, text="x"):
    item_id = f"id{number}" if item_id is None else item_id
    return Entry(number, item_id, False, {"caption": text, "score": 0.1 + number})


def skipped(number, nameless=False):
    return Entry(number, number if nameless else f"id{number}", nameless, None)


@pytest.fixture
def parts(tmp_path):
    """Opens the parts of out.jsonl, four items."""
    return lambda run="a run", total=4: RecordParts(tmp_path / "out.jsonl", run, total)


def write(parts, *entries):
    parts.write(list(entries))
    parts.close()


def merged(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_records_are_merged_in_the_order_of_the_items(parts, tmp_path):
    first, second = parts(), parts()
    write(first, answered(2), answered(0))
    write(second, answered(3), skipped(1))
    again = parts()
    assert list(again.there) == [ANSWERED, SKIPPED, ANSWERED, ANSWERED]
    again.merge()
    assert [record["id"] for record in merged(tmp_path)] == ["id0", "id2", "id3"]
    assert merged(tmp_path)[1] == {"id": "id2", "caption": "x", "score": 2.1}
    assert not (tmp_path / "out.jsonl.parts").exists()


def test_rows_tell_repeated_ids_apart_and_those_behind_an_unreadable_one(parts, tmp_path):
    write(parts(), answered(0, "a"), skipped(1, nameless=True), answered(2, "a"), answered(3, "b"))
    parts().merge()
    assert [(record["id"], record.get("row")) for record in merged(tmp_path)] == [("a", None), ("a", 2), ("b", 3)]


def test_an_answer_replaces_a_skipped_item_and_the_first_answer_stays(parts, tmp_path):
    write(parts(total=2), skipped(0), answered(1, text="first"))
    write(parts(total=2), answered(0, text="later"), answered(1, text="second"))
    parts(total=2).merge()
    assert [record["caption"] for record in merged(tmp_path)] == ["later", "first"]


def test_every_cut_of_a_part_goes_on(parts, tmp_path):
    write(parts(total=2), answered(0), answered(1))
    path = tmp_path / "out.jsonl.parts" / "000001.jsonl"
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        for other in path.parent.glob("00000[2-9].jsonl"):
            other.unlink()
        path.write_bytes(whole[:length])
        there = parts(total=2).there
        assert there.count(ANSWERED) == max(whole[:length].count(b"\n") - 1, 0)
        rest = [answered(number) for number in range(2) if there[number] == NONE]
        if rest:
            write(parts(total=2), *rest)
    parts(total=2).merge()
    assert [record["id"] for record in merged(tmp_path)] == ["id0", "id1"]


def test_missing_items_are_not_merged(parts, tmp_path):
    (tmp_path / "out.jsonl").write_text("as it was")
    write(parts(), answered(0), answered(2))
    write(lost := parts(), answered(1), answered(3))
    (tmp_path / "out.jsonl.parts" / "000001.jsonl").unlink()
    with pytest.raises(UserError, match="2 of 4 items are missing, the first is item 0: rerun the same command"):
        lost.merge()
    assert (tmp_path / "out.jsonl").read_text() == "as it was"


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"run": "another"}\n', "left by a run with other inputs"),
        (b'{"run": "a run"}\n{"number": 1}\n', "is damaged"),
        (b'{"run": "a run"}\n\xff\xfe\n', "is damaged"),
        (b'{"run": "a run"}\n["1", 2, false, null, ""]\n', "is damaged"),
        (b"[]\n", "left by a run"),
        (b'{"run": "a run"}\n[4, "x", false, null, ""]\n', "more items than the inputs"),
        (b'{"run": "a run"}\n[-1, "x", false, null, ""]\n', "is damaged"),
    ],
)
def test_parts_that_are_not_of_this_run_are_refused(content, message, parts, tmp_path):
    (tmp_path / "out.jsonl.parts").mkdir()
    (tmp_path / "out.jsonl.parts" / "000001.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        parts()


def test_two_processes_never_write_one_part(parts, tmp_path):
    both = [parts(), parts()]
    for number, part in enumerate(both):
        part.write([answered(number)])
    assert sorted(path.name for path in (tmp_path / "out.jsonl.parts").iterdir()) == ["000001.jsonl", "000002.jsonl"]


def test_a_file_that_changed_is_another(tmp_path):
    path = tmp_path / "a.tsv"
    names = [path, "a text"]
    assert identity(names)[1] == ("a text", None, None) and identity(names) == identity(names)
    before = identity(names)
    path.write_text("a")
    assert identity(names) != before
