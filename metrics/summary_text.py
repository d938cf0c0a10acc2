"""Generated summaries in the tokenization of the Gigaword references."""

import string
from itertools import cycle

_ESCAPED = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "[UNK]": "UNK", "&": "&amp;", "<": "&lt;", ">": "&gt;",
}  # fmt: skip


def clean_summary(text: str, validation: bool) -> str:
    """Generated text as it is scored: lowercased, retokenized, each digit 1 written `#`.

    Args:
        text: what the model wrote.
        validation: also write `<unk>` as a word of its own, as validation does and evaluation does not.
    """
    text = retokenize(text.lower().strip())
    if validation:
        text = text.replace("<unk>", " unk")
    return text.replace("1", "#")


def retokenize(text: str) -> str:
    """Words between blanks -> Penn Treebank tokens: brackets escaped, quotes in pairs, clitics and numbers joined."""
    words, output = text.split(), list[str]()
    double, single = cycle(("``", "''")), cycle(("`", "'"))
    position = 0
    while position < len(words):
        word, after, last = words[position], _word(words, position + 1), output[-1] if output else ""
        taken = 1
        if word in _ESCAPED:
            output.append(_ESCAPED[word])
        elif word == '"':
            output.append(next(double))
        elif word == "'" and after == "t" and last.endswith("n"):
            output[-1:], taken = [last[:-1], "n't"], 2
        elif word == "'" and after in ("s", "d", "ll"):
            output.append(word + after)
            taken = 2
        elif word == "'":
            output.append(next(single))
        elif words[position : position + 3] == [".", ".", "."]:
            output.append("...")
            taken = 3
        elif word == "-" and after == "-":
            output.append("--")
            taken = 2
        elif _in_number(last, word, after) or _in_compound(last, word, after):
            output[-1] += word + after
            taken = 2
        elif word == "." and _is_initial(last) and _is_initial(after) and _word(words, position + 2) == ".":
            output[-1] += f".{after}."
            taken = 2  # the second stop is also kept as a word, as in the released scores
        else:
            output.append(word)
        position += taken
    return " ".join(output)


def _word(words: list[str], position: int) -> str:
    return words[position] if position < len(words) else ""


def _in_number(last: str, word: str, after: str) -> bool:
    """Whether `3 , 000` or `3 . 5`."""
    if word == ",":
        last, after = last.replace(",", "0"), after.replace(",", "0")
    return word in (",", ".") and last.isdigit() and after.isdigit()


def _in_compound(last: str, word: str, after: str) -> bool:
    """Whether a dash between words, as in `well - known`."""
    return word == "-" and after != "" and last not in string.punctuation and after[0] not in string.punctuation


def _is_initial(word: str) -> bool:
    return len(word) == 1 and word.isupper()
