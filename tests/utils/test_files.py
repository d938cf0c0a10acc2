"""Files that are always whole."""

import os
import threading

import pytest

from utils.files import atomic_write, read_file


def test_the_new_content_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_way_of_the_draft_is_not_followed(tmp_path):
    (tmp_path / "mine").write_bytes(b"precious")
    (tmp_path / "file.tmp").symlink_to(tmp_path / "mine")
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "mine").read_bytes() == b"precious" and not (tmp_path / "file").is_symlink()


def test_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="not a regular file"), atomic_write(path):
            pass
    assert [found.name for found in tmp_path.iterdir()] == ["pipe"]


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert read_file(tmp_path / "pipe") == b""
    end, other = os.pipe()
    threading.Timer(0.05, lambda: (os.write(other, b"late"), os.close(other))).start()  # bash's <(command)
    assert read_file(f"/dev/fd/{end}") == b"late"
    os.close(end)
    for device in ("/dev/zero", "/dev/full"):
        with pytest.raises(OSError, match="it is a device, not a file"):
            read_file(device)
