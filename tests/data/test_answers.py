"""Answer sets from every kind of file, and bad ones."""

import json
import os
import pickle
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest

from data.answers import AnswerConfig, check_prompt_type, read_answers
from utils.errors import UserError

CASES = Path(__file__).parents[1] / "cases"


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
        ("a.pkl", pickle.dumps(Bomb()), "refers to posix.system"),
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


ODD = ["yes", "no\u2028way", "a\x85b", "c\x0cd"]


def numpy_pickle(kind, protocol):
    keys = {"keys": ["yes", "no"], "text": np.array(["yes", "no"]), "objects": np.array(["yes", "no"], dtype=object)}
    if kind in keys and kind != "keys":
        return pickle.dumps(keys[kind], protocol)
    values = {"keys": np.int64(1), "float": np.float32(0.5), "array": np.array([1, 2]), "zero": np.array(3)}
    text = np.str_ if kind == "keys" else str
    return pickle.dumps({text("yes"): values[kind], text("no"): values[kind]}, protocol)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", ["keys", "float", "array", "zero", "text", "objects"])
def test_numpy_values_do_not_matter(kind, protocol, tmp_path):
    found = read_answers(config(tmp_path, "a.pkl", numpy_pickle(kind, protocol)))
    assert found == ["yes", "no"] and [type(answer) for answer in found] == [str, str]


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_ordered_dicts_and_counters(protocol, tmp_path):
    for content in (OrderedDict(yes=0, no=1), Counter(yes=9, no=3), [*("yes", "no")], ("yes", "no")):
        assert read_answers(config(tmp_path, "a.pkl", pickle.dumps(content, protocol))) == ["yes", "no"]


@pytest.mark.parametrize(
    "value", [np.dtype("V8"), np.array([(1, "a")], dtype=[("x", "i4"), ("y", "O")]), np.datetime64("2020"), np.ones]
)
def test_other_values_of_numpy_are_refused(value, tmp_path):
    with pytest.raises(UserError, match="is not a pickled dict of answers .*it refers to"):
        read_answers(config(tmp_path, "a.pkl", pickle.dumps({"yes": value})))


def test_lines_of_a_text_file_end_at_line_ends_only(tmp_path):
    assert read_answers(config(tmp_path, "a.txt", "\n".join(ODD).encode())) == ODD
    assert read_answers(config(tmp_path, "a.txt", "\r\n".join(ODD).encode())) == ODD
    assert read_answers(AnswerConfig(ans2label_file=str(CASES / "ans_bom.txt")))[0] == "zero"


@pytest.mark.parametrize(
    "content",
    [
        {"0": "zero", "1": "red", "2": "blue"},
        {"2": "blue", "0": "zero", "1": "red"},
        {"1": "zero", "2": "red", "3": "blue"},
        {"zero": "0", "red": "1", "blue": "2"},
    ],
)
def test_answers_may_stand_on_either_side_of_labels(content, tmp_path):
    assert read_answers(config(tmp_path, "a.json", json.dumps(content).encode())) == ["zero", "red", "blue"]
    assert read_answers(AnswerConfig(ans2label_dict=json.dumps(content))) == ["zero", "red", "blue"]
    by_number = {int(key) if key.isdigit() else key: value for key, value in content.items()}
    assert read_answers(config(tmp_path, "a.pkl", pickle.dumps(by_number))) == ["zero", "red", "blue"]


def test_answers_that_are_numbers_stay_what_they_are():
    assert read_answers(AnswerConfig(ans2label_dict='{"2": 0, "7": 1}')) == ["2", "7"]
    assert read_answers(AnswerConfig(ans2label_dict='{"1": "0", "0": "1"}')) == ["1", "0"]
    five = ["zero", "red", "blue", "yes", "no"]
    assert read_answers(AnswerConfig(ans2label_file=str(CASES / "ans_inverse.json"))) == five


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"3": "zero", "7": "red"}', "other way round"),
        ('{"label2ans": ["zero", "red"]}', "lists or objects behind its keys"),
        ('{"ans2label": {"zero": 0}}', "lists or objects behind its keys"),
        ('{"zero": 0, "zero": 1}', "'zero' twice"),
        ('["zero", " "]', "blank answer .number 2."),
        ('{"": 0}', "blank answer"),
        ('["zero", "\\ud83d"]', "half of a surrogate pair"),
        ("[" * 100_000, "not JSON|answers as texts"),
    ],
)
def test_other_contents_are_named(content, words, tmp_path):
    for given in (config(tmp_path, "a.json", content.encode()), AnswerConfig(ans2label_dict=content)):
        with pytest.raises(UserError, match=words):
            read_answers(given)


def test_a_text_alone_is_no_list_of_letters():
    with pytest.raises(UserError, match="--ans2label-dict holds a str"):
        read_answers(AnswerConfig(ans2label_dict='"zero"'))


def test_messages_cut_long_answers(tmp_path):
    long = "x" * 1_000_000
    with pytest.raises(UserError) as caught:
        read_answers(config(tmp_path, "a.txt", f"{long}\n{long}\n".encode()))
    assert len(str(caught.value)) < 500 and "1,000,000 characters" in str(caught.value)
