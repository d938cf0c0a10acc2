import json
from pathlib import Path

import pytest

from tests.programs import start
from utils.errors import UserError
from utils.predictions import leaderboard_id, merge_rows, write_predictions

WORKER = """
import sys
from datetime import timedelta
import torch.distributed as dist
from utils.errors import UserError
from utils.predictions import write_predictions

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
record = lambda row: (row, {"image_id": str(row), "caption": f"caf\\xe9 {row}"})
rows = [[record(4), record(0), record(2)], [record(3), record(1), record(4)]][rank]  # row 4 pads the second share
merged = write_predictions(rows, f"{folder}/results/sub/test_predict.json", 5)
assert (merged is None) == (rank == 1)
try:
    write_predictions(rows[:2], f"{folder}/results/partial.json", 5)
except UserError as error:
    assert "1 of 5 rows have no prediction (the first is row 2" in str(error)
else:
    raise AssertionError("a missing row passed")
dist.destroy_process_group()
"""


def records(*rows: int) -> list[tuple[int, dict[str, object]]]:
    return [(row, {"id": row}) for row in rows]


def test_rows_come_once_in_input_order() -> None:
    assert merge_rows(records(2, 0, 1, 2), 3) == [{"id": 0}, {"id": 1}, {"id": 2}]
    assert merge_rows([], 0) == []


def test_conflict_names_the_row() -> None:
    with pytest.raises(UserError, match="Row 1 has two different predictions, {'id': 1} and {'id': 7}"):
        merge_rows([*records(0, 1), (1, {"id": 7})], 2)


def test_missing_rows_are_counted() -> None:
    with pytest.raises(UserError, match=r"3 of 5 rows have no prediction \(the first is row 1,"):
        merge_rows(records(0, 3), 5)


@pytest.mark.parametrize("row", [-1, 5])
def test_row_outside_the_file_is_refused(row: int) -> None:
    with pytest.raises(UserError, match=f"for row {row} of a file of 5 rows"):
        merge_rows(records(0, row), 5)


def test_file_is_ascii_json_without_indentation(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "test_predict.json"
    rows: list[tuple[int, dict[str, object]]] = [(1, {"id": "b", "box": [0.5, 1]}), (0, {"id": "caf\xe9"})]
    merged = write_predictions(rows, path, 2)
    assert path.read_bytes() == b'[{"id": "caf\\u00e9"}, {"id": "b", "box": [0.5, 1]}]'
    assert merged == json.loads(path.read_text())
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "test_predict.json"
    path.write_text("old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match=r"Cannot write .*test_predict\.json: No space left on device"):
        write_predictions(records(0), path, 1)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(UserError, match="Cannot write .*predict.json"):
        write_predictions(records(0), tmp_path / "results" / "predict.json", 1)


def test_two_processes_write_every_row_once(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    workers = [start(tmp_path / "worker.py", rank, tmp_path) for rank in (0, 1)]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    written = json.loads((tmp_path / "results" / "sub" / "test_predict.json").read_text())
    assert written == [{"image_id": str(row), "caption": f"caf\xe9 {row}"} for row in range(5)]
    assert not (tmp_path / "results" / "partial.json").exists()


@pytest.mark.parametrize(
    "text, number",
    [("12", 12), ("12.0", 12), ("-3", -3), ("007", 7), (" 5 ", 5), ("synpic0_0", None), ("1.5", None), ("1_000", None),
     ("", None), ("nan", None), ("1e5", None), ("٣", None), ("9" * 5000, None), ("9" * 18, 10**18 - 1)],
)  # fmt: skip
def test_ids_are_numbers_where_they_are(text: str, number: int | None) -> None:
    assert leaderboard_id(text) == (text if number is None else number)
