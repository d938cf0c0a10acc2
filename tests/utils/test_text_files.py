"""Every text file of a user comes through one door: byte order marks, line ends, half characters."""

import ast
import json
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import predict
from data.answers import AnswerConfig, read_answers
from data.builders.coco_annotations import read_json
from data.items import open_items
from data.negatives import Negatives
from data.text import Vocabulary
from data.tsv import TsvFile
from metrics.coco_caption import score_captions
from metrics.document_frequencies import read_captions
from models.generation import GenerationConfig
from models.vqgan import VQGANConfig
from ofa_module.cli import literal_dict
from utils.errors import UserError
from utils.files import json_object, read_text, text_lines, whole_characters
from utils.hf_layout import read_options
from utils.predictions import check_predictions

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "models" / "export" / "caption.py"  # runs where there is nothing of ours
CASES = ROOT / "tests" / "cases"
MARK = b"\xef\xbb\xbf"


def product_files():
    folders = ("criterions", "data", "models", "ofa_module", "run_scripts", "tasks", "utils")
    yield from (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    yield from ROOT.glob("*.py")


@cache
def nodes(path):
    """All nodes of a program."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def reads_text(call: ast.Call) -> bool:
    """Whether a call reads a text file without the door."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "read_text":
        return isinstance(call.func, ast.Attribute)
    if name != "open" or (
        isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in ("os", "Image")
    ):
        return False
    keywords = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg in ("encoding", "mode")}
    place = 0 if isinstance(call.func, ast.Attribute) else 1
    positional = call.args[place] if len(call.args) > place else None
    modes = [node.value for node in ast.walk(positional) if isinstance(node, ast.Constant)] if positional else ["r"]
    mode = keywords.get("mode", "".join(map(str, modes)))
    return not set(mode) & set("bwax") and keywords.get("encoding") != "utf-8-sig"


def test_no_program_reads_a_text_file_past_the_door():
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in product_files()
        if path not in (ROOT / "utils" / "files.py", EXAMPLE)
        for call in nodes(path)
        if isinstance(call, ast.Call) and reads_text(call)
    ]
    assert not found


def test_lines_end_at_line_ends_only():
    assert text_lines("a\u2028b\nc\x85d\r\ne\x0cf\rg\n") == ["a\u2028b", "c\x85d", "e\x0cf", "g"]
    assert text_lines("") == [] and text_lines("a\n\n") == ["a", ""]


def test_half_characters_are_seen():
    assert whole_characters("\U0001f600 a") and not whole_characters("a\ud83d") and not whole_characters("\udc00")


def marked(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(MARK + text.encode())
    return path


def test_the_door_takes_the_mark_off(tmp_path):
    assert read_text(marked(tmp_path, "a.txt", "zero\n")) == "zero\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", "zero\none\n"), ("a.json", '{"zero": 0, "one": 1}'), ("b.json", '["zero", "one"]')],
)
def test_answers(name, text, tmp_path):
    assert read_answers(AnswerConfig(ans2label_file=str(marked(tmp_path, name, text)))) == ["zero", "one"]


def test_rows(tmp_path):
    path = marked(tmp_path, "rows.tsv", "0\ta\r\n\ufeff1\tb\n")
    assert [TsvFile(path)[row] for row in range(2)] == [("0", "a"), ("1", "b")]
    assert TsvFile(shutil.copy(CASES / "cap_bom.tsv", tmp_path), "0")[0] == ("0",)


def test_items(tmp_path):
    objects = marked(tmp_path, "a.jsonl", '{"id": "x", "text": "a"}\n{"text": "b"}\n')
    items = list(open_items(str(objects), ("text",), "0").read(()))
    assert [(item.id, item.values, item.problem) for item in items] == [
        ("x", {"text": "a"}, ""),
        (None, {"text": "b"}, ""),
    ]
    texts = marked(tmp_path, "a.txt", "a cat\n")
    assert [item.values["text"] for item in open_items(str(texts), ("text",), "0").read(())] == ["a cat"]


def test_vocabulary(tmp_path):
    for name in ("dict.txt", "encoder.json", "vocab.bpe"):
        content = (ROOT / "utils" / "BPE" / name).read_bytes()
        (tmp_path / name).write_bytes(MARK + content)
    (tmp_path / "dict_size").write_bytes(MARK + b"50260")
    vocab, released = Vocabulary.load(tmp_path), Vocabulary.load(ROOT / "utils" / "BPE")
    assert [vocab[i] for i in range(10)] == [released[i] for i in range(10)]
    assert vocab.encode(" a cat") == released.encode(" a cat")


def test_negatives(tmp_path):
    marked(tmp_path, "all_captions.txt", "a cat\na dog\n")
    marked(tmp_path, "object.txt", "cat\u2028fish\ndog\n")
    marked(tmp_path, "type2ans.json", '{"other": ["red", "blue"]}')
    negatives = Negatives.load(tmp_path)
    assert negatives.objects == ["cat\u2028fish", "dog"] and negatives.captions[0] == ("a cat",)


def test_configurations_and_results(tmp_path):
    params = {"model": {"params": {"ddconfig": {"ch": 8}, "embed_dim": 4}}}
    assert VQGANConfig.from_yaml(marked(tmp_path, "model.yaml", yaml.safe_dump(params))).ch == 8
    marked(tmp_path, "config.json", '{"model_type": "ofa", "d_model": 256}')
    assert read_options(tmp_path)["encoder_embed_dim"] == 256
    records = [{"image_id": "1", "caption": "a cat on a mat"}]
    written = marked(tmp_path, "predict.json", json.dumps(records))
    assert check_predictions(written, {"image_id": str}, 1, None) == 1
    references = marked(tmp_path, "references.json", json.dumps({"annotations": records}))
    assert score_captions(records, references)
    assert list(read_captions(marked(tmp_path, "rows.tsv", "a cat\n"), 0)) == [["a cat <eos>"]]
    assert read_json(marked(tmp_path, "coco.json", "[]")) == []


def in_options(path):
    GenerationConfig.from_json(read_text(path))


def in_overrides(path):
    literal_dict(read_text(path), "--model-overrides")


def in_decoding(path):
    predict.parse_args(["caption", "a.png", "--checkpoint=x", f"--decoding={read_text(path)}"])


TWICE = {
    "answers.json": ('{"red": 0, "blue": 1, "red": 2}', lambda path: read_answers(AnswerConfig(ans2label_file=path))),
    "config.json": ('{"model_type": "ofa", "red": 1, "red": 2}', lambda path: read_options(Path(path).parent)),
    "coco.json": ('{"images": [{"red": 1, "segmentation": [], "red": 2}]}', lambda path: read_json(Path(path))),
    "model.yaml": ("model:\n  params:\n    red: 1\n    red: 2\n", lambda path: VQGANConfig.from_yaml(Path(path))),
    "predictions.json": ('[{"red": "a", "red": "b"}]', lambda path: check_predictions(path, {"id": str}, 1, None)),
    "options.json": ('{"red": 1, "red": 2}', in_options),
    "overrides.txt": ("{'red': 1, 'red': 2}", in_overrides),
    "decoding.json": ('{"red": 1, "red": 2}', in_decoding),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_key_that_stands_twice_is_named(name, tmp_path, capsys):
    """Python's readers take the last one in silence."""
    text, read = TWICE[name]
    (tmp_path / name).write_text(text)
    with pytest.raises((UserError, SystemExit)) as caught:
        read(str(tmp_path / name))
    said = f"{caught.value} {capsys.readouterr().err}"
    assert "'red' twice" in said and "Traceback" not in said


def test_rows_and_nodes_that_are_shared(tmp_path):
    with pytest.raises(ValueError, match=r"it has the key 'a\\nb' twice"):
        json_object('{"x": {"a\\nb": 1, "a\\nb": 2}}')
    names = "abcdefghijklmnopqrstuvwxyz"
    lines = [f"{b}: &{b} {{p: *{a}, q: *{a}}}" for a, b in pairwise(names)]  # 2 ** 25 mappings, if each is looked at
    (tmp_path / "model.yaml").write_text("\n".join(["a: &a {p: 1}", *lines, "loop: &loop {p: *loop}"]))
    with pytest.raises(UserError, match="has no model.params"):
        VQGANConfig.from_yaml(tmp_path / "model.yaml")


def test_no_program_reads_json_past_the_check():
    own = ("digits/", "utils/build_bpe.py", "utils/tensor_file.py", "data/record_table.py", "utils/record_file.py")
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in (*product_files(), *(ROOT / "metrics").rglob("*.py"))
        for call in nodes(path)
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("loads", "load")
        and getattr(getattr(call.func, "value", None), "id", "") == "json" and len(call.keywords) == 0
    ]  # fmt: skip
    written_by_us = ("models/weights/convert.py", "models/export/caption.py", *own)
    assert not [place for place in found if not place.startswith(written_by_us)]
