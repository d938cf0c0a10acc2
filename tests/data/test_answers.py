"""Answer sets from every kind of file, and bad ones."""

import os
import pickle
from collections import defaultdict

import pytest

from data.answers import AnswerConfig, check_prompt_type, read_answers
from utils.errors import UserError


class Bomb:
    """What a malicious pickle looks like: reading it would run a command."""

    def __reduce__(self):
        return os.system, ("touch /tmp/ofa_bomb",)


def config(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return AnswerConfig(ans2label_file=str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pkl", pickle.dumps({"yes": 0, "no": 1, "two dogs": 2})),
        ("a.pkl", pickle.dumps({"yes": 0, "no": 1, "two dogs": 2}, protocol=0)),
        ("pickled", pickle.dumps(defaultdict(int, {"yes": 0, "no": 1, "two dogs": 2}))),
        ("a.json", b'{"yes": 0, "no": 1, "two dogs": 2}'),
        ("a.json", b'["yes", "no", "two dogs"]'),
        ("a.txt", b"yes\nno\n\n two dogs \n"),
    ],
)
def test_every_kind_of_file_gives_the_answers_in_order(tmp_path, name, content):
    assert read_answers(config(tmp_path, name, content)) == ["yes", "no", "two dogs"]


def test_without_a_file_the_dict_counts():
    assert read_answers(AnswerConfig(ans2label_dict='{"maybe": 7, "no": 0}')) == ["maybe", "no"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pkl", pickle.dumps(Bomb()), "asks for posix.system"),
        ("a.pkl", pickle.dumps({"yes": 0})[:-4], "not a pickled dict"),
        ("a.json", b'{"yes": 0', "not JSON"),
        ("a.json", b"[1, 2]", "answers as texts"),
        ("a.txt", b"", "answers as texts"),
        ("a.txt", b"yes\nno\nyes\n", "'yes' twice"),
        ("a.txt", b"\xff\xfe\x00", "neither a pickle nor UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, words):
    with pytest.raises(UserError, match=words):
        read_answers(config(tmp_path, name, content))
    assert not os.path.exists("/tmp/ofa_bomb")


def test_missing_file_and_bad_dict():
    with pytest.raises(UserError, match="No such file"):
        read_answers(AnswerConfig(ans2label_file="/nowhere/a.pkl"))
    with pytest.raises(UserError, match="--ans2label-dict"):
        read_answers(AnswerConfig(ans2label_dict="yes, no"))


def test_prompt_types():
    assert check_prompt_type(None) == "none" and check_prompt_type("prev_output") == "prev_output"
    with pytest.raises(UserError, match="--prompt-type source"):
        check_prompt_type("source")
