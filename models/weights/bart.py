"""What BART's files do differently from OFA's: names of entries, and the order of tokens.

fairseq's `bart.large/model.pt` has OFA's names and the tokens in OFA's order, `<mask>` included. fairseq's
`bart.base/model.pt` has unused tokens before `<mask>`. Hugging Face's files put `model.` before the names.
"""

from collections.abc import MutableMapping

import torch
from torch import Tensor

PREFIX, SHARED = "model.", "shared.weight"
NOT_NEEDED = ("final_logits_bias", "lm_head.weight")  # zeros, and a copy of the token table
TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
TEXT_ROWS = 50264  # special tokens and those of dict.txt
PADDED_ROWS = 51201  # rows of bart.base: the text's, unused ones, <mask>


def rename_entries(state: MutableMapping[str, Tensor]) -> list[str]:
    """Gives Hugging Face's entries of BART fairseq's names, in place; "old name -> new name" of each."""
    renamed = []
    if f"{PREFIX}{SHARED}" in state or any(name.startswith(f"{PREFIX}encoder.") for name in state):
        for name in [name for name in state if name.startswith(PREFIX)]:
            new = name.removeprefix(PREFIX)
            state[new] = state.pop(name)
            renamed.append(f"{name} -> {new}")
    if SHARED in state:
        table = state.pop(SHARED)
        for name in TABLES:
            state.setdefault(name, table)
            renamed.append(f"{SHARED} -> {name}")
    for name in NOT_NEEDED if renamed else ():
        state.pop(name, None)
    return renamed


def without_fillers(table: Tensor) -> Tensor:
    """Rows (50265, C) of a token table (51201, C): text and, after it, `<mask>`, which is the last row of both."""
    return torch.cat([table[:TEXT_ROWS], table[-1:]])
