"""The vocabulary against golden ids and texts, its files and their errors, and the text normalizers."""

import json
import multiprocessing
import pickle
import random
import shutil
import string
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from data.text import Vocabulary, normalize_caption, normalize_question
from utils.errors import UserError
from utils.punctuation import remove_punctuation

ROOT = Path(__file__).parents[2]
BPE_DIR = ROOT / "utils" / "BPE"
GOLDEN = json.loads((ROOT / "tests/golden/samples_tokenization.json").read_text(encoding="utf-8"))
SEQUENCES = json.loads((ROOT / "tests/golden/token_sequences.json").read_text(encoding="utf-8"))["sequences"]


@pytest.fixture(scope="module")
def vocab() -> Vocabulary:
    return Vocabulary.load(BPE_DIR)


@pytest.fixture
def small_dir(tmp_path) -> Path:
    """A GPT-2 folder whose dictionary lists a few tokens only."""
    folder = tmp_path / "small"
    folder.mkdir()
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copyfile(BPE_DIR / name, folder / name)
    (folder / "dict.txt").write_text("262 1\n3797 1\n257 1\n")
    (folder / "dict_size").write_text("3\n")
    return folder


@pytest.fixture
def bert_dir(tmp_path) -> Path:
    folder = tmp_path / "bert"
    folder.mkdir()
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "图",
        "片",
        "cafe",
        "play",
        "##ing",
        "it",
        "'",
        "s",
        "?",
    ]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "dict.txt").write_text("".join(f"{token} 1\n" for token in tokens), encoding="utf-8")
    (folder / "dict_size").write_text(str(len(tokens)))
    return folder


# golden figures


def test_sizes_and_symbols(vocab):
    assert len(vocab) == GOLDEN["vocabulary_size"] == 59457
    for symbol, number in GOLDEN["ids_of_symbols"].items():
        assert vocab.index(symbol) == number and vocab[number] == symbol
    assert (vocab.mask, vocab.code_start, vocab.bin_start) == (50264, 50265, 58457)
    assert (vocab.num_codes, vocab.num_bins) == (8192, 1000)


@pytest.mark.parametrize("case", GOLDEN["texts"], ids=lambda case: ascii(case["text"])[:30])
def test_texts(vocab, case):
    ids = vocab.encode(case["text"])
    assert ids == case["ids"]
    assert vocab.string(ids) == case["string"] == case["bpe"]
    assert vocab.decode(ids) == case["decoded"]


@pytest.mark.parametrize("case", GOLDEN["special"], ids=lambda case: case["string"])
def test_special_symbols(vocab, case):
    assert [vocab[number] for number in case["ids"]] == case["symbols"]
    assert vocab.string(case["ids"]) == case["string"]
    if case["decoded"] == "raises ValueError":  # the original cannot decode its fillers; they are no text
        assert vocab.decode(case["ids"]) == ".<|endoftext|>"
    else:
        assert vocab.decode(case["ids"]) == case["decoded"]


@pytest.mark.parametrize("case", SEQUENCES, ids=lambda case: case["task"])
def test_sequences_of_the_tasks(vocab, case):
    assert vocab.encode(case["text"]) == case["ids"]
    assert vocab.decode(torch.tensor([0, *case["ids"], 2])) == case["text"]


@pytest.mark.parametrize("case", GOLDEN["normalisation"], ids=lambda case: ascii(case["text"])[:30])
def test_normalization(case):
    assert normalize_question(case["text"]) == case["pre_question"]
    assert normalize_question(case["text"], max_words=4) == case["pre_question_4"]
    assert normalize_caption(case["text"]) == case["pre_caption"]
    assert normalize_caption(case["text"], max_words=4) == case["pre_caption_4"]


def test_remove_punctuation():
    assert remove_punctuation("a man's well-known hat & coat.") == "a mans wellknown hat  coat"
    assert remove_punctuation(string.punctuation) == ""
    assert remove_punctuation("“déjà…”") == "“déjà…”"


# behavior


def test_special_ids_are_ints_and_methods(vocab):
    for attribute, number in (("bos", 0), ("pad", 1), ("eos", 2), ("unk", 3)):
        value = getattr(vocab, attribute)
        assert value == number and value() == number and type(value()) is int and isinstance(value, int)
    assert torch.full((2,), vocab.pad).tolist() == [1, 1]
    assert torch.tensor([vocab.bos, 7, vocab.eos]).tolist() == [0, 7, 2]
    assert json.dumps(vocab.eos) == "2"


def test_random_text_survives(vocab):
    rng = random.Random(0)
    alphabet = string.printable + "áßñ漢字🚀\u200b\u3000\x85\u2028\x00’'" + "  \n\t\r"
    pieces = [*alphabet, "<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "madeupword0000", "'ll"]
    for _ in range(500):
        text = "".join(rng.choices(pieces, k=rng.randrange(40)))
        ids = vocab.encode(text)
        assert vocab.decode(ids) == text
        assert all(3 < number < 50260 for number in ids)


def test_markup_in_text_is_plain_text(vocab):
    assert vocab.index("50256") not in vocab.encode("a <|endoftext|> b")
    assert vocab.decode(vocab.encode("a <|endoftext|> b")) == "a <|endoftext|> b"


def test_codes_and_bins(vocab):
    assert vocab.code_id(0) == vocab.index("<code_0>") and vocab.code_id(8191) == vocab.index("<code_8191>")
    assert vocab.bin_id(0) == vocab.index("<bin_0>") and vocab.bin_id(999) == len(vocab) - 1
    assert vocab.index("<bin_3>") == vocab.bin_id(3)
    assert vocab.index("<bin_1000>") == vocab.index("nonsense") == vocab.unk
    for call, number in (
        (vocab.code_id, 8192),
        (vocab.code_id, -1),
        (vocab.bin_id, 1000),
        (vocab.bin_id, -1),
    ):
        with pytest.raises(ValueError, match=f"{number} is outside 0"):
            call(number)


def test_decode_drops_ends_and_pads_on_request(vocab):
    ids = [0, 713, 1, 3, 1, 2]
    assert vocab.decode(ids) == vocab.decode(torch.tensor(ids)) == vocab.decode(iter(ids)) == "This<pad><unk><pad>"
    assert vocab.decode(ids, drop_pad=True) == "This<unk>"
    assert vocab.decode([]) == vocab.string([]) == ""


def test_cut_character_decodes_to_replacement(vocab):
    assert vocab.decode(vocab.encode("🚀")[:1] + [vocab.mask]) == "\ufffd<mask>"


def test_ids_outside_the_vocabulary(vocab):
    for number in (-1, len(vocab)):
        with pytest.raises(IndexError):
            vocab[number]


def test_other_sizes():
    vocab = Vocabulary.load(str(BPE_DIR), code_dict_size=16, num_bins=4)
    assert len(vocab) == 50265 + 16 + 4
    assert vocab[vocab.bin_start] == "<bin_0>" and vocab[vocab.code_start + 15] == "<code_15>"


def _encode(vocab: Vocabulary, text: str, queue: "multiprocessing.Queue[list[int]]") -> None:
    queue.put(vocab.encode(text))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(vocab, method):
    text = " what does the image describe?"
    expected = vocab.encode(text)  # used before the fork, too
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=_encode, args=(vocab, text, queue))
    worker.start()
    assert queue.get(timeout=60) == expected
    worker.join(timeout=60)
    assert worker.exitcode == 0


def test_pickled_copy_is_equal(vocab):
    copy = pickle.loads(pickle.dumps(vocab))
    assert len(copy) == len(vocab) and copy.pad() == 1
    for case in GOLDEN["texts"]:
        assert copy.encode(case["text"]) == case["ids"] and copy.decode(case["ids"]) == case["decoded"]


# small and Chinese dictionaries


def test_small_dictionary(small_dir):
    vocab = Vocabulary.load(small_dir, code_dict_size=2, num_bins=5)
    assert len(vocab) == 4 + 3 + 1 + 2 + 5
    assert vocab.encode(" the cat saw a") == [4, 5, vocab.unk, 6]
    assert vocab.decode([4, 5, vocab.unk, 6, 2]) == " the cat<unk> a"


def test_bert(bert_dir):
    vocab = Vocabulary.load(bert_dir, bpe="bert")
    assert vocab.string(vocab.encode("Café playing")) == "cafe play ##ing"
    assert vocab.string(vocab.encode("图片 IT'S?")) == "图 片 it ' s ?"
    assert vocab.decode(vocab.encode("Café playing, it's?")) == "cafe playing [UNK] it's?"
    assert vocab.decode([vocab.bos, vocab.index("it"), vocab.bin_id(3), vocab.unk, vocab.eos]) == "it <bin_3> <unk>"
    assert vocab.mask == 4 + 14 and vocab[4] == "[PAD]"
    assert pickle.loads(pickle.dumps(vocab)).encode("playing") == vocab.encode("playing")


@pytest.mark.parametrize("name", ["gpt2", "small", "bert"])
def test_the_tokenizer_for_others_has_the_same_ids(name, small_dir, bert_dir, tmp_path):
    folder = {"gpt2": BPE_DIR, "small": small_dir, "bert": bert_dir}[name]
    vocab = Vocabulary.load(folder, "bert" if name == "bert" else "gpt2", 32, 4)
    vocab.tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [
        " what does the image describe?",
        " the cat saw a",
        "<mask> </s> <bin_3> Café 你好 🎉 <|endoftext|> 262 [UNK]",
    ]
    for text in [*texts, "Café playing, it's?", "图片", "", "  \n"]:
        ids = vocab.encode(text)
        found = tokenizer.encode(text).ids
        assert [number if number < len(vocab) else vocab.unk for number in found] == ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == vocab.decode(ids)
    assert [tokenizer.id_to_token(number) for number in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert tokenizer.token_to_id("<bin_3>") == vocab.bin_id(3) and tokenizer.token_to_id("<mask>") == vocab.mask


# errors


def test_missing_folder_and_files(tmp_path, small_dir, bert_dir):
    with pytest.raises(UserError, match="no folder .*nowhere.*--bpe-dir"):
        Vocabulary.load(tmp_path / "nowhere")
    for name in ("dict.txt", "encoder.json", "vocab.bpe"):
        (small_dir / name).rename(small_dir / "away")
        with pytest.raises(UserError, match=f"{name} is missing"):
            Vocabulary.load(small_dir)
        (small_dir / "away").rename(small_dir / name)
    (bert_dir / "vocab.txt").unlink()
    with pytest.raises(UserError, match="vocab.txt is missing"):
        Vocabulary.load(bert_dir, bpe="bert")


@pytest.mark.parametrize("bpe, expected", [("gpt2", 50260), ("bert", 21128)])
def test_wrong_length(bpe, expected, request):
    folder = request.getfixturevalue("small_dir" if bpe == "gpt2" else "bert_dir")
    (folder / "dict_size").unlink()
    count = len((folder / "dict.txt").read_text(encoding="utf-8").splitlines())
    with pytest.raises(UserError, match=f"has {count} lines but .* needs {expected}"):
        Vocabulary.load(folder, bpe=bpe)


def test_declared_length_must_hold(small_dir):
    (small_dir / "dict_size").write_text("4")
    with pytest.raises(UserError, match="has 3 lines but .* needs 4"):
        Vocabulary.load(small_dir)
    (small_dir / "dict_size").write_text("three")
    with pytest.raises(UserError, match="dict_size must hold one number"):
        Vocabulary.load(small_dir)


def test_broken_files(small_dir):
    (small_dir / "dict.txt").write_text("262 1\n262 1\n257 1\n")
    with pytest.raises(UserError, match="names a symbol twice"):
        Vocabulary.load(small_dir)
    (small_dir / "dict.txt").write_bytes(b"262 1\n\xff 1\n257 1\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        Vocabulary.load(small_dir)
    (small_dir / "vocab.bpe").write_text("#version: 0.2\na b c\n")
    with pytest.raises(UserError, match="not GPT-2's"):
        Vocabulary.load(small_dir)
    (small_dir / "encoder.json").write_text('{"a": 0')
    with pytest.raises(UserError, match="build_bpe"):
        Vocabulary.load(small_dir)


def test_crlf_files_read_the_same(small_dir):
    for name in ("dict.txt", "vocab.bpe"):
        (small_dir / name).write_bytes((small_dir / name).read_bytes().replace(b"\n", b"\r\n"))
    assert Vocabulary.load(small_dir).encode(" the cat") == [4, 5]


def test_unknown_bpe():
    with pytest.raises(UserError, match="gpt2 or bert"):
        Vocabulary.load(BPE_DIR, bpe="gtp2")


def test_half_a_surrogate_pair_is_a_value_error(vocab):
    for text in ("is it red \ud83d", "\udc00"):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            vocab.encode(text)
    with pytest.raises(TypeError):
        vocab.encode(None)
