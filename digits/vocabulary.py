"""A small vocabulary for the demo: GPT-2's byte pair encoding with a dictionary of what the texts need.

    python -m digits.vocabulary      # writes digits/BPE/dict.txt again

The dictionary is committed because the demo's checkpoint is made for it: change both or none.
"""

from collections.abc import Iterable
from pathlib import Path
from string import Formatter

from data.prompts import PROMPTS
from data.text import GPT2_DIR, Vocabulary
from digits.tasks import TASKS

BPE_DIR = Path(__file__).parent / "BPE"
DICTIONARY_LINES = 1995  # with the specials and <mask>: 2,000 ids before image codes and location bins


def demo_texts() -> list[str]:
    """Every prompt, and texts that hold every word of the demo rows."""
    prompts = [_fill(template["gpt2"]) for template in PROMPTS.values()]
    return prompts + [text for task in TASKS.values() for text in task.texts()]


def _fill(template: str) -> str:
    """The template with the same word in each of its fields."""
    parsed = Formatter().parse(template)
    return "".join(literal if field is None else f"{literal}digit" for literal, field, _, _ in parsed)


def dictionary_symbols(texts: Iterable[str], vocab: Vocabulary) -> list[str]:
    """Pick `DICTIONARY_LINES` symbols: what the texts use, then single bytes, then the most frequent merges.

    Args:
        texts: each is taken with and without a space in front.
        vocab: the full vocabulary.
    """
    bare = {text.lstrip() for text in texts}
    used = {vocab[token] for text in bare for start in ("", " ") for token in vocab.encode(start + text)}
    # a symbol is a GPT-2 id: 0..255 are the single bytes, then come the merges in order of frequency
    rest = (str(number) for number in range(DICTIONARY_LINES) if str(number) not in used)
    return [*sorted(used, key=int), *rest][:DICTIONARY_LINES]


def write_vocabulary(folder: Path) -> None:
    """Write `dict.txt` and its `dict_size` to a folder, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = dictionary_symbols(demo_texts(), Vocabulary.load(GPT2_DIR))
    lines = "".join(f"{symbol} 1\n" for symbol in symbols)
    (folder / "dict.txt").write_text(lines, encoding="utf-8", newline="\n")
    (folder / "dict_size").write_text(f"{len(symbols)}\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_vocabulary(BPE_DIR)
