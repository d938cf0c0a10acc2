"""Words outside a vocabulary: counted by `data.validate`, warned of in training, never written."""

import logging
from pathlib import Path

import pytest

from data.base import DataConfig
from data.caption import CaptionDataset
from data.text import Vocabulary
from data.tsv import TsvFile
from data.validate import main
from ofa_module.preflight import warn_of_unknown_words
from tests.data.test_bad_rows import IMAGE

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "digits" / "BPE"


@pytest.fixture(scope="module")
def vocab():
    return Vocabulary.load(DEMO)


def rows_of(path, captions):
    path.write_text("".join(f"{n}\t{IMAGE}\t{text}\n" for n, text in enumerate(captions)), encoding="utf-8")
    return path


def test_unknown_words_are_known_by_name(vocab):
    vocab.unknown_words.clear()
    ids = vocab.encode(" a xylophone that is green, xylophone or zebra!")
    assert vocab.has_unknown and vocab.unk in ids
    assert (
        vocab.unknown_words["xylophone"] == 2
        and vocab.unknown_words["zebra"] == 1
        and "green" not in vocab.unknown_words
    )


def test_the_released_vocabulary_writes_everything():
    vocab = Vocabulary.load(ROOT / "utils" / "BPE")
    assert not vocab.has_unknown and vocab.unk not in vocab.encode("xylophone \u732b \u200b")
    assert not vocab.unknown_words


def test_unknown_is_never_written(vocab):
    ids = [vocab.bos, *vocab.encode(" a xylophone that is green"), vocab.eos]
    assert "unk" not in vocab.written(ids) and vocab.written(ids).endswith(" that is green")


def test_bert(tmp_path):
    words = ["[PAD]", "[UNK]", "a", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    (tmp_path / "dict_size").write_text("4")
    vocab = Vocabulary.load(tmp_path, "bert")
    assert vocab.written(vocab.encode("a zebra cat")) == "a cat" and list(vocab.unknown_words) == ["zebra"]


def test_validate_counts_rows_and_lists_words(tmp_path, capsys):
    path = rows_of(tmp_path / "rows.tsv", ["a xylophone", "a green zero", "xylophone on a xylophone zebra"])
    argv = ["caption", str(path), "--selected-cols=0,1,2", f"--bpe-dir={DEMO}"]
    for workers in (0, 1):
        main([*argv, f"--workers={workers}"])
        output = capsys.readouterr().out
        assert "3 of 3 rows are good." in output
        assert "2 rows have words outside the vocabulary: 'xylophone' (2), 'zebra' (1)" in output
    main([*argv[:-1], "--workers=0"])
    assert "outside the vocabulary" not in capsys.readouterr().out


def test_training_warns_once_with_numbers(tmp_path, vocab, caplog):
    path = rows_of(tmp_path / "rows.tsv", ["a xylophone", "a green zero", "", "a xylophone"])
    dataset = CaptionDataset(TsvFile(path), vocab, DataConfig(patch_image_size=8), "train")
    with caplog.at_level(logging.WARNING):
        warn_of_unknown_words(dataset)
    (record,) = caplog.records
    assert "2 of 3 rows checked" in record.getMessage() and "'xylophone' (2)" in record.getMessage()
    caplog.clear()
    good = CaptionDataset(
        TsvFile(rows_of(tmp_path / "good.tsv", ["a green zero"])), vocab, DataConfig(patch_image_size=8), "train"
    )
    warn_of_unknown_words(good)
    assert not caplog.records
