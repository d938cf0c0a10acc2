"""Text <-> ids: the vocabulary of words, image codes and location bins, and the normalizers of texts.

Ids (V = 59,457 with the English files and the default sizes): `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, the
lines of `dict.txt`, `<mask>`, `<code_0>` ..., `<bin_0>` ...; no padding to a multiple.
"""

import itertools
import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from utils.build_bpe import FILLERS, token_bytes
from utils.constants import BOS, EOS, PAD, UNK
from utils.errors import UserError, quoted
from utils.files import parse_json, read_text, whole_characters

GPT2_DIR = Path(__file__).parents[1] / "utils" / "BPE"  # the released vocabulary
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
BPE_FILES = {"gpt2": ("dict.txt", "encoder.json", "vocab.bpe"), "bert": ("dict.txt", "vocab.txt")}
MOST_SYMBOLS = 2**20  # image codes or location bins
MOST_UNKNOWN = 10_000  # unknown words that are kept
DICT_SIZES = {"gpt2": 50260, "bert": 21128}
BERT_SPECIALS = ("[UNK]", "[SEP]", "[CLS]", "[PAD]", "[MASK]")
# WordPiece separates punctuation by blanks; these are closed up again after decoding.
CLOSE_UP = [(f" {mark}", mark.strip()) for mark in [*".?!,", "' ", "n't", "'m", "'s", "'ve", "'re"]]


class _SpecialId(int):
    # Our code reads `vocab.pad` as an int, fairseq calls `dictionary.pad()`: this serves both.
    def __call__(self) -> int:
        return int(self)


class _Bpe(NamedTuple):
    name: str
    tokenizer: Tokenizer
    symbols: list[str]  # what dict.txt calls each id of the tokenizer
    pieces: dict[str, bytes]  # the text behind a symbol where it is not the symbol itself


class Vocabulary:
    """Dictionary and BPE in one; picklable, and usable after a fork.

    Attributes:
        bos, pad, eos, unk: ids 0, 1, 2, 3; `vocab.pad` and `vocab.pad()` are the same number.
        bpe: "gpt2" (byte-level, case and leading blank matter) or "bert" (WordPiece, lowercased).
        has_unknown: whether there are texts that it cannot write; the released English vocabulary writes all.
        unknown_words: the words with unknown tokens that `encode` has met, each with how often; clear it to begin anew.
    """

    bos, pad, eos, unk = (_SpecialId(number) for number in (BOS, PAD, EOS, UNK))

    def __init__(self, text_symbols: Sequence[str], bpe: "_Bpe", num_codes: int, num_bins: int) -> None:
        """Use `Vocabulary.load`; `text_symbols` are the symbols of `dict.txt` in order."""
        codes = [f"<code_{code}>" for code in range(num_codes)]
        bins = [f"<bin_{number}>" for number in range(num_bins)]
        self.bpe, self.num_codes, self.num_bins = bpe.name, num_codes, num_bins
        self.mask = len(SPECIALS) + len(text_symbols)
        self.code_start = self.mask + 1
        self.bin_start = self.code_start + num_codes
        self._symbols = [*SPECIALS, *text_symbols, "<mask>", *codes, *bins]
        self._ids = {symbol: number for number, symbol in enumerate(self._symbols)}
        self._tokenizer, self._symbol_of_token = bpe.tokenizer, bpe.symbols
        self._id_of_token = [self._ids.get(symbol, UNK) for symbol in bpe.symbols]
        self._unknown = {int(self.unk), *([self._ids["[UNK]"]] if "[UNK]" in self._ids else [])}
        self.has_unknown = not self._unknown.isdisjoint(self._id_of_token)
        self.unknown_words: Counter[str] = Counter()
        self._pieces = [bpe.pieces.get(symbol, symbol.encode()) for symbol in self._symbols]

    @classmethod
    def load(
        cls, bpe_dir: str | Path, bpe: str = "gpt2", code_dict_size: int = 8192, num_bins: int = 1000
    ) -> "Vocabulary":
        """Read the vocabulary files of a folder.

        Args:
            bpe_dir: holds `dict.txt` ("symbol count" per line) and `encoder.json` + `vocab.bpe` (gpt2) or
                `vocab.txt` (bert). A file `dict_size` there declares a dictionary of another length; tokens
                outside it are unk. Without GPT-2's two files, those of utils/BPE are read.
            bpe: "gpt2" or "bert".
            code_dict_size: number of image codes.
            num_bins: number of location bins.
        Raises:
            UserError: unknown `bpe`, missing folder or file, broken file, dictionary of the wrong length.
        """
        folder = Path(bpe_dir)
        if bpe not in BPE_FILES:
            raise UserError(f"Unknown --bpe {bpe!r}; choose gpt2 or bert.")
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}; pass the folder of dict.txt as --bpe-dir.")
        for name, count in (("code_dict_size", code_dict_size), ("num_bins", num_bins)):
            if not 0 <= count <= MOST_SYMBOLS:
                raise UserError(f"{name} is {count}: choose 0 to {MOST_SYMBOLS}.")
        needed, encoder = BPE_FILES[bpe], folder
        if bpe == "gpt2" and not any((folder / name).exists() for name in needed[1:]):
            needed, encoder = needed[:1], GPT2_DIR
        for name in needed:
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing; --bpe-dir with --bpe={bpe} needs {', '.join(needed)}.")
        encoding = _gpt2_bpe(encoder, _stamp(encoder)) if bpe == "gpt2" else _bert_bpe(folder)
        return cls(_read_dictionary(folder, bpe), encoding, code_dict_size, num_bins)

    def __len__(self) -> int:
        """V, the number of ids."""
        return len(self._symbols)

    def __getitem__(self, number: int) -> str:
        """Symbol of an id; IndexError outside 0..V-1."""
        if number < 0:
            raise IndexError(f"id {number} is negative")
        return self._symbols[number]

    def index(self, symbol: str) -> int:
        """Id of a symbol, unk if there is none."""
        return self._ids.get(symbol, int(self.unk))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without bos and eos; `<mask>` or `<|endoftext|>` in it are plain characters.

        Raises ValueError for half of a surrogate pair, which JSON can hold and no encoding can write.
        """
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except TypeError:
            if isinstance(text, str) and not whole_characters(text):
                raise ValueError(f"the text {quoted(text)} holds half of a surrogate pair, not a character") from None
            raise
        id_of_token = self._id_of_token
        ids = [id_of_token[token] for token in encoding.ids]
        if self.has_unknown and not self._unknown.isdisjoint(ids):
            words: dict[int | None, list[int]] = {}  # number of the word -> ids of its tokens
            for word, number in zip(encoding.word_ids, ids, strict=True):
                words.setdefault(word, []).append(number)
            for word, numbers in words.items():
                if (
                    word is not None
                    and len(self.unknown_words) < MOST_UNKNOWN
                    and not self._unknown.isdisjoint(numbers)
                ):
                    start, stop = encoding.word_to_chars(word) or (0, 0)
                    self.unknown_words[text[start:stop].strip()] += 1
        return ids

    def decode(self, ids: Iterable[int] | Tensor, drop_pad: bool = False) -> str:
        """Text of ids (T,); bos and eos vanish, other symbols in angle brackets are spelled out.

        Args:
            ids: numbers in 0..V-1.
            drop_pad: leave out pads too, which are otherwise spelled `<pad>` as the original does.
        """
        kept = self._without_ends(ids)
        if drop_pad:
            kept = [number for number in kept if number != self.pad]
        if self.bpe == "gpt2":
            return b"".join([self._pieces[number] for number in kept]).decode("utf-8", errors="replace")
        text = " ".join([self._symbols[number] for number in kept]).replace(" ##", "")
        for spaced, closed in CLOSE_UP:
            text = text.replace(spaced, closed)
        return text

    def written(self, ids: Iterable[int] | Tensor) -> str:
        """Text of ids (T,) for people: as `decode`, without unknown tokens, which stand for no text."""
        numbers: Iterable[int] = ids.tolist() if isinstance(ids, Tensor) else ids
        return self.decode([number for number in numbers if number not in self._unknown])

    def tokenizer(self) -> Tokenizer:
        """The same encoding for programs that have `tokenizers` only: texts without bos and eos <-> these ids.

        Tokens that the dictionary lacks have ids from V on, and are unk; image codes and bins are never made of texts.
        """
        content = parse_json(self._tokenizer.to_str())
        missing = itertools.count(len(self))
        tokens = sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
        ids = {token: self._ids.get(self._symbol_of_token[number], -1) for token, number in tokens}
        ids = {token: next(missing) if number < 0 else number for token, number in ids.items()}
        named = set(ids.values())
        content["model"]["vocab"] = ids | {s: number for number, s in enumerate(self._symbols) if number not in named}
        for token in content["added_tokens"]:
            token["id"] = ids[token["content"]]
        made = Tokenizer.from_str(json.dumps(content))
        closed_up = [decoders.Replace(*pair) for pair in CLOSE_UP]
        pieces = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Fuse(), *closed_up])
        made.decoder = decoders.ByteLevel() if self.bpe == "gpt2" else pieces
        return made

    def string(self, ids: Iterable[int] | Tensor) -> str:
        """Symbols of ids (T,) joined by blanks, without bos and eos."""
        return " ".join([self._symbols[number] for number in self._without_ends(ids)])

    def _without_ends(self, ids: Iterable[int] | Tensor) -> list[int]:
        numbers: Iterable[int] = ids.tolist() if isinstance(ids, Tensor) else ids
        return [number for number in numbers if number != self.bos and number != self.eos]

    def code_id(self, code: int) -> int:
        """Id of image code `code`; ValueError outside 0..num_codes-1."""
        if not 0 <= code < self.num_codes:
            raise ValueError(f"image code {code} is outside 0..{self.num_codes - 1}")
        return self.code_start + code

    def bin_id(self, number: int) -> int:
        """Id of location bin `number`; ValueError outside 0..num_bins-1."""
        if not 0 <= number < self.num_bins:
            raise ValueError(f"location bin {number} is outside 0..{self.num_bins - 1}")
        return self.bin_start + number


def _read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file without LF or CR-LF; other line separators are part of a line."""
    try:
        lines = read_text(path).split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); restore the released file.") from None
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _read_dictionary(folder: Path, bpe: str) -> list[str]:
    """Symbols of `dict.txt`, checked for number and for doubles."""
    path, declared = folder / "dict.txt", folder / "dict_size"
    expected = DICT_SIZES[bpe]
    if declared.is_file():
        try:
            expected = int(read_text(declared))
        except ValueError:
            raise UserError(f"{declared} must hold one number, the number of lines of dict.txt.") from None
    symbols = [line.rsplit(" ", 1)[0] for line in _read_lines(path)]
    if len(symbols) != expected:
        raise UserError(
            f"{path} has {len(symbols)} lines but --bpe={bpe} needs {expected}; "
            "restore the file, or write the number of its lines to a file dict_size beside it."
        )
    if len({*symbols, *SPECIALS, "<mask>"}) != len(symbols) + len(SPECIALS) + 1:
        raise UserError(f"{path} names a symbol twice, or one of {SPECIALS} or <mask>; restore the file.")
    return symbols


def _stamp(folder: Path) -> tuple[tuple[int, int, int], ...]:
    """What changes when one of GPT-2's two files does."""
    stats = [(folder / name).stat() for name in BPE_FILES["gpt2"][1:]]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


@lru_cache(maxsize=2)  # half a second; whoever loads several tasks or models needs it once
def _gpt2_bpe(folder: Path, stamp: object) -> _Bpe:
    """GPT-2's split and merges; no blank is put in front, and no token is special. `stamp`: see `_stamp`."""
    try:
        encoder = parse_json(read_text(folder / "encoder.json"))
        lines = [line for line in _read_lines(folder / "vocab.bpe") if not line.startswith("#version:")]
        merges = [(first, second) for first, second in map(str.split, lines)]
        tokenizer = Tokenizer(models.BPE(vocab=encoder, merges=merges))
        pieces = {str(number): piece for number, piece in token_bytes(encoder).items()}
    except Exception as error:  # the Rust library raises plain Exception
        files = f"encoder.json and vocab.bpe in {folder}"
        raise UserError(f"{files} are not GPT-2's ({error!r}); run `python -m utils.build_bpe`.") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    symbols = [str(number) for number in range(len(encoder))]
    return _Bpe("gpt2", tokenizer, symbols, pieces | dict.fromkeys(FILLERS, b""))


def _bert_bpe(folder: Path) -> _Bpe:
    """BERT uncased: lower case, accents stripped, Chinese characters apart, longest match first."""
    path = folder / "vocab.txt"
    tokens = _read_lines(path)
    if "[UNK]" not in tokens:
        raise UserError(f"{path} has no [UNK]; restore BERT's vocab.txt.")
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([token for token in BERT_SPECIALS if token in vocab])
    return _Bpe("bert", tokenizer, tokens, {})


_ASCII_PUNCTUATION = frozenset(string.punctuation)


def has_words(text: str) -> bool:
    """Whether a text says anything: one character that is no blank, punctuation mark or control character."""
    return any(c not in _ASCII_PUNCTUATION and unicodedata.category(c)[0] not in "PZC" for c in text)


def require_words(text: str, what: str) -> str:
    """The text; ValueError if it has no words. The one rule for all texts that a model learns from."""
    if not has_words(text):
        raise ValueError(f"the {what} has no words")
    return text


_HYPHEN_SLASH_TO_BLANK = str.maketrans("-/", "  ")


def normalize_question(text: str, max_words: int | None = None) -> str:
    """Question in the form the model was trained on.

    Lower case, no leading `,.!?*#:;~`, `-` and `/` to blanks, runs of white space to one blank, ends
    stripped, at most `max_words` words.
    """
    text = text.lower().lstrip(",.!?*#:;~").translate(_HYPHEN_SLASH_TO_BLANK)
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return text if max_words is None else " ".join(text.split(" ")[:max_words])


def normalize_caption(text: str, max_words: int | None = None) -> str:
    """Caption in the form the model was trained on: as a question, and `<person>` becomes `person`."""
    return normalize_question(text, max_words).replace("<person>", "person")
