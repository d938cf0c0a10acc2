"""Whether stored options make sense: files can hold anything, and models are built from what they hold."""

import dataclasses
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

LARGEST = 10**7  # of a size; the largest real ones are token tables of some 60,000 rows


def odd_option(kind: type[Any], options: Mapping[str, Any]) -> str | None:
    """The first option whose value is not of its field's type, or no possible size, as "name = value"; None if all fit.

    Args:
        kind: a dataclass of options with defaults; a float is never negative, and a rate of dropping at most 1.
        options: values by name; names that are no fields are passed over.
    """
    for field in dataclasses.fields(kind):
        if field.name in options and not _fits(field.name, field.default, options[field.name]):
            return f"{field.name} = {options[field.name]!r:.60}"
    return None


def _fits(name: str, default: Any, value: Any) -> bool:
    if default is None or isinstance(default, str):
        return value is None or isinstance(value, str)
    if isinstance(default, bool):
        return isinstance(value, bool) or value in (0, 1)
    if isinstance(default, int):
        return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) <= LARGEST
    if isinstance(default, float):
        largest = 1.0 if "drop" in name else math.inf
        return isinstance(value, Real) and math.isfinite(value) and 0 <= float(value) <= largest
    return True
