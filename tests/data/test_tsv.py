"""TSV files: rows in every odd shape of file, errors, and the life of the row index."""

import io
import multiprocessing
import os
import pickle
import random
import struct
import time
import zlib
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from data import row_index
from data.text_tables import CsvTable, JsonLines
from data.tsv import TsvFile
from utils.errors import BadRowError, UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Keep the tests out of the user's cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("OFA_CACHE", str(folder))
    return folder


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """Paths whose index was built in this process."""
    built: list[str] = []
    build = row_index._build_index

    def counted(path: str, *rest: object) -> None:
        built.append(path)
        build(path, *rest)

    monkeypatch.setattr(row_index, "_build_index", counted)
    return built


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def index_of(path: Path) -> Path:
    return Path(f"{path}.ofaidx")


# rows


def test_columns_in_the_order_wanted(tmp_path):
    path = write(tmp_path / "x.tsv", b"a0\ta1\ta2\nb0\tb1\tb2\n")
    assert list(TsvFile(path)) == [("a0", "a1", "a2"), ("b0", "b1", "b2")]
    assert list(TsvFile(str(path), "2,0")) == [("a2", "a0"), ("b2", "b0")]
    assert TsvFile(path, [1])[1] == ("b1",)
    assert TsvFile(path, "0,2").columns == (0, 2) and TsvFile(path).columns is None
    assert TsvFile(path).path == str(path)


def test_row_numbers(tmp_path):
    rows = TsvFile(write(tmp_path / "x.tsv", b"0\n1\n2\n"))
    assert len(rows) == 3
    assert [rows[row] for row in (2, 0, -1, -3, np.int64(1))] == [("2",), ("0",), ("2",), ("0",), ("1",)]
    for row in (3, -4):
        with pytest.raises(IndexError, match="which has 3"):
            rows[row]
    with pytest.raises(TypeError):
        rows["0"]  # type: ignore[index]


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"a\tb", [("a", "b")]),
        (b"a\tb\r\nc\td\r\n", [("a", "b"), ("c", "d")]),
        (b"a\tb\r\nc\td", [("a", "b"), ("c", "d")]),
        (b"a\tb\nc\td\n\n", [("a", "b"), ("c", "d")]),
        (b"a\tb\nc\td\r\n\r\n\n\r\n", [("a", "b"), ("c", "d")]),
        (b"a\rx\tb\n", [("a\rx", "b")]),
        (b"a\tb\r", [("a", "b\r")]),
        (b"\t\n\t", [("", ""), ("", "")]),
        ("é\t\u2028\x85\x0b\n\"q\t'".encode(), [("é", "\u2028\x85\x0b"), ('"q', "'")]),
    ],
    ids=ascii,
)
def test_line_ends(tmp_path, content, expected):
    assert list(TsvFile(write(tmp_path / "x.tsv", content))) == expected


@pytest.mark.parametrize("seed", range(12))
def test_random_files(tmp_path, monkeypatch, seed):
    """Any mixture of ends, characters and lengths, with chunks shorter and longer than rows."""
    rng = random.Random(seed)
    monkeypatch.setattr(row_index, "_CHUNK", rng.choice([1, 2, 7, 64, 1 << 20]))
    monkeypatch.setattr(row_index, "_SPARSE", rng.choice([1, 8, 1024]))
    width = rng.randint(1, 5)
    alphabet = "ab \r\x0b\x85\u2028é漢🚀\"'"
    rows = [
        # letters around a field, so that no line is blank or ends in a carriage return of its own
        tuple("x" + "".join(rng.choices(alphabet, k=rng.randrange(30))) + "y" for _ in range(width))
        for _ in range(rng.randint(1, 60))
    ]
    ends = [rng.choice(["\n", "\r\n"]) for _ in rows]
    if rng.random() < 0.5:
        ends[-1] = ""
    text = "".join("\t".join(row) + end for row, end in zip(rows, ends, strict=True))
    file = TsvFile(write(tmp_path / "x.tsv", text.encode()))
    assert len(file) == len(rows)
    order = rng.sample(range(len(rows)), len(rows))
    assert [file[row] for row in order] == [rows[row] for row in order]
    column = rng.randrange(width)
    assert list(TsvFile(file.path, [column])) == [(row[column],) for row in rows]


def test_long_and_short_rows_in_one_file(tmp_path):
    """The search for newlines changes its method between these parts of the file."""
    rows = [f"{row}\t{'x' * (300_000 if 50 <= row < 60 else row % 7)}" for row in range(5000)]
    file = TsvFile(write(tmp_path / "x.tsv", "\n".join(rows).encode()))
    assert len(file) == 5000
    assert all("\t".join(file[row]) == rows[row] for row in range(5000))


# bad rows and user errors


def test_wrong_number_of_columns(tmp_path):
    file = TsvFile(write(tmp_path / "x.tsv", b"a\tb\tc\n\nd\te\tf\tg\nh\ti\n"), "0,2")
    assert file[0] == ("a", "c") and file[2] == ("d", "f")
    for row, count in ((1, 0), (3, 2)):
        with pytest.raises(BadRowError, match=f"has {count} columns, the selected ones need 3") as caught:
            file[row]
        assert (caught.value.path, caught.value.place) == (file.path, f"line {row + 1}")


def test_all_columns_must_be_as_many_as_in_the_first_row(tmp_path):
    file = TsvFile(write(tmp_path / "x.tsv", b"a\tb\nc\td\te\n\nf\tg\n"))
    assert file[3] == ("f", "g")
    with pytest.raises(BadRowError, match="line 2: the row has 3 columns, the first row 2"):
        file[1]
    with pytest.raises(BadRowError, match="line 3: the row has 0 columns"):
        file[2]


def test_blank_line_between_rows_of_one_column(tmp_path):
    file = TsvFile(write(tmp_path / "x.tsv", b"a\n\nb\n"), "0")
    assert (file[0], file[2]) == (("a",), ("b",))
    with pytest.raises(BadRowError, match="line 2"):
        file[1]


def test_text_that_is_not_utf8(tmp_path):
    file = TsvFile(write(tmp_path / "x.tsv", b"a\tb\nc\txy\xff\n"))
    with pytest.raises(BadRowError, match="line 2: column 1 is not UTF-8 at its byte 2"):
        file[1]
    assert TsvFile(file.path, "0")[1] == ("c",)


@pytest.mark.parametrize("columns", ["", "0,,1", "a", "0,-1", "1.5", [], [-1], [None]])
def test_malformed_columns(tmp_path, columns):
    with pytest.raises(UserError, match="write them like 0,4,2"):
        TsvFile(write(tmp_path / "x.tsv", b"a\tb\n"), columns)


def test_missing_folder_and_empty(tmp_path):
    with pytest.raises(UserError, match="no data file .*none.tsv"):
        TsvFile(tmp_path / "none.tsv")
    with pytest.raises(UserError, match="not a regular file"):
        TsvFile(tmp_path)
    for content in (b"", b"\n", b"\r\n\n\r"):
        with pytest.raises(UserError, match="has no rows"):
            TsvFile(write(tmp_path / "empty.tsv", content))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.tsv"]


# the index


def test_index_file(tmp_path, builds):
    path = write(tmp_path / "x.tsv", b"ab\nc\n\n")
    TsvFile(path)
    content = index_of(path).read_bytes()
    assert len(content) == row_index._HEADER.size + 8 * 3
    assert struct.unpack("<3Q", content[-24:]) == (0, 3, 5)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["x.tsv", "x.tsv.ofaidx"]
    TsvFile(path, "0")
    assert builds == [str(path)]


def test_changed_file_is_indexed_again(tmp_path, builds):
    path = write(tmp_path / "x.tsv", b"a\nb\n")
    assert len(TsvFile(path)) == 2
    write(path, b"a\nb\nc\n")
    assert len(TsvFile(path)) == 3
    status = path.stat()
    write(path, b"abcd\n\n")  # as many bytes
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert list(TsvFile(path)) == [("abcd",)]
    assert len(builds) == 3


@pytest.mark.parametrize("keep", [0, 20, 40, 47, 48, -1, "longer", "magic", "version"])
def test_torn_index_is_built_again(tmp_path, builds, keep):
    path = write(tmp_path / "x.tsv", b"a\nb\nc\n")
    TsvFile(path)
    good = index_of(path).read_bytes()
    changed = {
        "longer": good + bytes(8),
        "magic": b"x" + good[1:],
        "version": good[:8] + struct.pack("<Q", 99) + good[16:],
    }
    index_of(path).write_bytes(good[:keep] if isinstance(keep, int) else changed[keep])
    assert list(TsvFile(path)) == [("a",), ("b",), ("c",)]
    assert len(builds) == 2 and index_of(path).read_bytes() == good


def test_index_of_another_file_of_equal_size_and_time(tmp_path, builds):
    first, second = write(tmp_path / "x.tsv", b"abcd\nef\n"), write(tmp_path / "y.tsv", b"ab\ncdef\n")
    assert list(TsvFile(first)) == [("abcd",), ("ef",)]
    status = first.stat()
    os.utime(second, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(index_of(first), index_of(second))  # as after `mv y.tsv x.tsv`
    assert list(TsvFile(second)) == [("ab",), ("cdef",)]
    write(second, b"abcde\nf\n")  # the same file written in place, its time put back
    os.utime(second, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert list(TsvFile(second)) == [("abcde",), ("f",)] and len(builds) == 3


@pytest.mark.parametrize("seed", range(12))
def test_no_altered_offset_gives_wrong_rows(seed, tmp_path):
    rows = [f"{'x' * (row % 5)}{row}" for row in range(9)]
    path = write(tmp_path / "x.tsv", "".join(f"{row}\n" for row in rows).encode())
    TsvFile(path)
    rng, good = random.Random(seed), index_of(path).read_bytes()
    offsets = np.frombuffer(good[row_index._HEADER.size :], "<u8").copy()
    row = rng.randrange(len(offsets))
    offsets[row] = rng.choice([0, int(offsets[row]) + 1, int(offsets[-1 - row]) + 1, 10**6, 2**63, 2**64 - 1])
    for forged in (
        good[: row_index._HEADER.size] + offsets.tobytes(),
        good[: row_index._HEADER.size] + bytes(8 * len(offsets)),
    ):
        index_of(path).write_bytes(forged)
        assert [found for (found,) in TsvFile(path)] == rows
        assert index_of(path).read_bytes() == good


def forge(path, offsets):
    """An index of the right stamp and checksum that says something else."""
    header = row_index._HEADER
    fields = header.unpack(index_of(path).read_bytes()[: header.size])[:-2]
    content = np.array(offsets, "<u8").tobytes()
    index_of(path).write_bytes(header.pack(*fields, zlib.crc32(content), len(offsets) - 1) + content)


@pytest.mark.parametrize("offsets", [[0], [0, 4], [0, 8], [0, 4, 8, 13], [0, 4, 4, 12], [4, 8, 12], [0, 8, 4, 12]])
def test_an_index_made_to_look_right_that_ends_elsewhere_is_built_again(offsets, tmp_path):
    path = write(tmp_path / "x.tsv", b"1\ta\n2\tb\n3\tc\n")
    TsvFile(path)
    forge(path, offsets)
    assert list(TsvFile(path)) == [("1", "a"), ("2", "b"), ("3", "c")]


@pytest.mark.parametrize("offsets", [[0, 3, 8, 12], [0, 12], [0, 2, 4, 8, 12], [0, 4, 9, 12]])
@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_an_index_made_to_look_right_gives_no_wrong_rows(kind, offsets, tmp_path):
    content = {"tsv": b"1\ta\n2\tb\n3\tc\n", "csv": b"i,a\n1,b\n2,c\n", "jsonl": b"{ }\n{ }\n{ }\n"}[kind]
    path = write(tmp_path / f"x.{kind}", content)
    open_it = {"tsv": TsvFile, "csv": partial(CsvTable, names=("i",)), "jsonl": partial(JsonLines, names=())}[kind]
    open_it(path)
    forge(path, offsets)
    with pytest.raises(UserError) as caught:
        list(open_it(path))
    if kind != "csv" or offsets != [0, 12]:  # a row of CSV may have several lines
        assert type(caught.value) is UserError and "delete x." in str(caught.value)


def test_index_of_an_earlier_version_is_built_again(tmp_path, builds):
    path = write(tmp_path / "x.tsv", b"a\nb\n")
    status = path.stat()
    header = struct.pack("<8sQQqQ", b"OFA rows", 1, status.st_size, status.st_mtime_ns, 1)
    index_of(path).write_bytes(header + struct.pack("<2Q", 0, 4))
    assert list(TsvFile(path)) == [("a",), ("b",)] and len(builds) == 1


def test_permissions_and_name_may_change_between_pickling_and_use(tmp_path):
    path = write(tmp_path / "x.tsv", b"a\nb\n")
    packed = pickle.dumps(TsvFile(path))
    path.chmod(0o600)
    assert pickle.loads(packed)[1] == ("b",)


@pytest.mark.parametrize("name", ["x.tsv.ofaidx", "x.tsv.ofaidx.tmp", "x.tsv.ofaidx.lock"])
def test_links_beside_the_data_lead_nowhere(tmp_path, name):
    path = write(tmp_path / "x.tsv", b"a\nb\n")
    mine, gone = write(tmp_path / "mine", b"precious"), tmp_path / "gone"
    for target in (mine, gone):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(target)
        assert list(TsvFile(path)) == [("a",), ("b",)]
    assert mine.read_bytes() == b"precious" and not gone.exists()


@pytest.mark.parametrize("name", ["x.tsv.ofaidx", "x.tsv.ofaidx.tmp", "x.tsv.ofaidx.lock"])
def test_nobody_waits_for_a_pipe(tmp_path, name):
    path = write(tmp_path / "x.tsv", b"a\nb\n")
    os.mkfifo(tmp_path / name)
    assert list(TsvFile(path)) == [("a",), ("b",)]
    os.mkfifo(tmp_path / "pipe.tsv")
    with pytest.raises(UserError, match="not a regular file"):
        TsvFile(tmp_path / "pipe.tsv")


def test_leftovers_of_a_killed_builder_do_no_harm(tmp_path):
    path = write(tmp_path / "x.tsv", b"a\nb\n")
    Path(f"{index_of(path)}.lock").touch()
    Path(f"{index_of(path)}.tmp").write_bytes(b"half an index that is longer than the whole one" * 9)
    assert len(TsvFile(path)) == 2
    assert sorted(found.name for found in tmp_path.iterdir()) == ["x.tsv", "x.tsv.ofaidx"]


def test_legacy_pickle_is_ignored(tmp_path):
    path = write(tmp_path / "x.tsv", b"a\nb\n")
    Path(f"{path}.index").write_bytes(pickle.dumps((7, [0] * 7)))
    assert len(TsvFile(path)) == 2


def test_index_in_the_cache_if_the_folder_cannot_be_written(tmp_path, cache, builds):
    path = write(tmp_path / "x.tsv", b"a\nb\n")
    Path(f"{index_of(path)}.lock").mkdir()  # nobody, root neither, can create a file there
    assert len(TsvFile(path)) == len(TsvFile(path)) == 2
    assert builds == [str(path)] and not index_of(path).exists()
    assert [found.suffix for found in cache.iterdir()] == [".ofaidx"]
    other = tmp_path / "other"
    other.mkdir()
    write(other / "x.tsv", b"a\nb\nc\n")
    Path(f"{index_of(other / 'x.tsv')}.lock").mkdir()
    assert len(TsvFile(other / "x.tsv")) == 3  # the same name in another folder
    assert len(list(cache.iterdir())) == 2


def test_nowhere_to_write_the_index(tmp_path, monkeypatch):
    path = write(tmp_path / "x.tsv", b"a\n")
    Path(f"{index_of(path)}.lock").mkdir()
    monkeypatch.setenv("OFA_CACHE", str(path))  # a file where a folder is needed
    with pytest.raises(UserError, match="cannot be written .*OFA_CACHE"):
        TsvFile(path)


def test_full_disk_leaves_no_draft(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "x.tsv", b"a\nb\n")
    fsync, calls = os.fsync, []

    def full_once(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_once)
    assert len(TsvFile(path)) == 2
    assert [found.name for found in tmp_path.glob("x.*")] == ["x.tsv"]
    assert len(list(cache.iterdir())) == 1


def test_file_that_grows_while_it_is_indexed(tmp_path, monkeypatch):
    path = write(tmp_path / "x.tsv", b"a\nb\n")
    find = row_index._end_of_rows

    def grow(descriptor: int, size: int) -> int:
        write(path, b"a\nb\nc\n")
        return find(descriptor, size)

    monkeypatch.setattr(row_index, "_end_of_rows", grow)
    with pytest.raises(UserError, match="changed while its rows were counted"):
        TsvFile(path)
    assert [found.name for found in tmp_path.iterdir()] == ["x.tsv"]


def test_progress_only_for_large_files(tmp_path, monkeypatch, capsys):
    TsvFile(write(tmp_path / "small.tsv", b"a\n"))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(row_index, "_SHOW_PROGRESS", 2)
    TsvFile(write(tmp_path / "large.tsv", b"a\nb\n"))
    assert "index large.tsv" in capsys.readouterr().err


# processes


def _open_together(path: str, gate: "multiprocessing.Event", queue: "multiprocessing.Queue") -> None:  # type: ignore
    build, built = row_index._build_index, []

    def slow(*args: object) -> None:
        time.sleep(0.3)  # long enough for the others to arrive at the lock
        build(*args)  # type: ignore[arg-type]
        built.append(1)

    row_index._build_index = slow  # type: ignore[assignment]
    gate.wait(60)
    rows = TsvFile(path)
    queue.put((len(built), len(rows), rows[-1]))


def run_together(context: BaseContext, path: Path) -> list[tuple[int, int, tuple[str, ...]]]:
    """Four processes open a file at once; what each built and read."""
    gate, queue = context.Event(), context.Queue()
    workers = [context.Process(target=_open_together, args=(str(path), gate, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    gate.set()
    results = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    return results


def test_four_processes_build_once(tmp_path):
    path = write(tmp_path / "x.tsv", b"".join(b"%d\ttext\n" % row for row in range(1000)))
    results = run_together(multiprocessing.get_context("fork"), path)
    assert sorted(built for built, _, _ in results) == [0, 0, 0, 1]
    assert all(result[1:] == (1000, ("999", "text")) for result in results)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["x.tsv", "x.tsv.ofaidx"]


def _die_with_lock(path: str, ready: "multiprocessing.Event") -> None:  # type: ignore
    def hang(*args: object) -> None:
        ready.set()
        time.sleep(60)

    row_index._build_index = hang  # type: ignore[assignment]
    TsvFile(path)


def test_killed_builder_does_not_block(tmp_path):
    path = write(tmp_path / "x.tsv", b"a\nb\n")
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    builder = context.Process(target=_die_with_lock, args=(str(path), ready))
    builder.start()
    assert ready.wait(60)
    builder.kill()
    builder.join(60)
    assert len(TsvFile(path)) == 2


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(tmp_path, method):
    path = write(tmp_path / "x.tsv", b"".join(b"%d\t%d\n" % (row, row * row) for row in range(500)))
    order = random.Random(0).sample(range(500), 500)
    rows = TsvFile(path, "1,0")
    loader = DataLoader(
        rows, batch_size=16, sampler=order, num_workers=2, multiprocessing_context=method, collate_fn=list
    )
    assert [row for batch in loader for row in batch] == [(str(row * row), str(row)) for row in order]
    assert rows[3] == ("9", "3")


def test_pickled_file_reopens_on_use(tmp_path):
    path = write(tmp_path / "x.tsv", b"a\tb\nc\td\n")
    rows = TsvFile(path, "1")
    packed = pickle.dumps(rows)
    assert len(packed) < 500
    copy = pickle.loads(packed)
    assert len(copy) == 2
    index_of(path).unlink()
    assert (copy[1], copy[0]) == (("d",), ("b",))


def test_file_changed_between_pickling_and_use(tmp_path):
    path = write(tmp_path / "x.tsv", b"a\nb\n")
    packed = pickle.dumps(TsvFile(path))
    write(path, b"a\nb\nc\n")
    with pytest.raises(UserError, match="was changed while it was in use"):
        pickle.loads(packed)[0]


def test_file_cut_while_in_use(tmp_path):
    path = write(tmp_path / "x.tsv", b"aaaa\nbbbb\n")
    rows = TsvFile(path)
    os.truncate(path, 7)
    assert rows[0] == ("aaaa",)
    with pytest.raises(UserError, match="became shorter"):
        rows[1]


def test_descriptors_are_closed(tmp_path):
    path = write(tmp_path / "x.tsv", b"a\n")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        TsvFile(path)[0]
        with pytest.raises(UserError):
            TsvFile(tmp_path)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_large_rows_are_read_whole(tmp_path):
    text = io.BytesIO()
    for row in range(3):
        text.write(b"%d\t" % row + bytes([65 + row]) * 3_000_000 + b"\r\n")
    rows = TsvFile(write(tmp_path / "x.tsv", text.getvalue()))
    assert [(row[0], set(row[1]), len(row[1])) for row in rows] == [
        (str(number), {"ABC"[number]}, 3_000_000) for number in range(3)
    ]
