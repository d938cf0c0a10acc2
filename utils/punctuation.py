"""Text without punctuation, as captions are trained, written and scored."""

import string

_DROP = str.maketrans("", "", string.punctuation)


def remove_punctuation(text: str) -> str:
    """Text without the 32 ASCII punctuation characters ("man's" -> "mans"); nothing takes their place."""
    return text.translate(_DROP)
