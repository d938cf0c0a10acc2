"""The report of `data.validate`: what is counted over the rows of a file, as text and as JSON."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median_low
from typing import Any

from data.base import OFADataset
from data.sample import LYING
from data.validate_rows import Found
from utils.errors import quoted
from utils.predictions import leaderboard_id
from utils.servers import Server

SHOWN = 20  # bad rows, unknown words and other examples that are named
SIDES = {"source": "max_src_length", "target": "max_tgt_length"}


class Report:
    """What was found in the rows of a file, which are added one by one in order.

    Args:
        dataset: the rows. server: where answers go to be scored, if it needs integer ids.
    """

    def __init__(self, dataset: OFADataset, server: Server | None = None) -> None:
        self.dataset, self.server = dataset, server
        self.rows = 0
        self.kinds: Counter[str] = Counter()
        self.messages: list[str] = []  # of the first bad rows
        self.unknown: Counter[str] = Counter()  # word -> rows that have it
        self.with_unknown = self.lying = self.ids_of_texts = 0
        self.first_text_id = ""
        self.ids: dict[str, int] = {}  # -> the first row
        self.repeated_ids: dict[str, list[int]] = {}  # -> the first rows that have it
        self.images: dict[bytes, int] = {}  # digest -> the first row
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.modes: Counter[str] = Counter()
        self.tokens = {side: Counter[int]() for side in SIDES}  # number of tokens -> rows
        self.cut = dict.fromkeys(SIDES, 0)
        self.answers: Counter[str] = Counter()
        self.outside: Counter[str] = Counter()
        self.against: dict[str, Any] | None = None

    def add(self, found: Found) -> str | None:
        """Counts the next row; its message if it is one of the first bad ones."""
        row, self.rows = self.rows, self.rows + 1
        self.unknown.update(found.unknown)
        self.with_unknown += bool(found.unknown)
        if found.id is not None:
            self._add_id(found.id, row)
        for image in found.images:
            self.images.setdefault(image.digest, row)
            self.sizes[image.width, image.height] += 1
            self.modes[image.mode] += 1
        for side, tokens, cut in zip(SIDES, found.tokens, found.cut, strict=True):
            self.cut[side] += cut
            if tokens is not None:
                self.tokens[side][tokens] += 1
        if found.answer is not None:
            self.answers[found.answer] += 1
            self.outside.update([found.answer] * found.outside)
        if found.message is None:
            return None
        if found.message.endswith(LYING):
            self.lying += 1
            return None
        self.kinds[_kind(found.message, self.dataset.rows.path)] += 1
        if self.kinds.total() > SHOWN:
            return None
        self.messages.append(found.message)
        return found.message

    def _add_id(self, row_id: str, row: int) -> None:
        if isinstance(leaderboard_id(row_id), str):
            self.ids_of_texts += 1
            self.first_text_id = self.first_text_id or row_id
        # A file for the leaderboard has the same number for 7 and 007.
        key = str(leaderboard_id(row_id)) if self.server else row_id
        if (first := self.ids.setdefault(key, row)) != row:
            rows = self.repeated_ids.setdefault(key, [first])
            if len(rows) < SHOWN:
                rows.append(row)

    def compare(self, path: str | Path, other: Iterable[bytes | None], line: Callable[[int], int]) -> None:
        """Counts the images that another file has too.

        Args:
            path: the other file. other: digests of its images, in order. line: row of it -> number of the line.
        """
        shared = {}
        for row, digest in enumerate(other):
            if digest in self.images and digest not in shared:
                shared[digest] = [self._line(self.images[digest]), line(row)]
        self.against = {"file": str(path), "shared_images": len(shared), "first_lines": list(shared.values())[:SHOWN]}

    @property
    def bad(self) -> int:
        """Rows that training would stop at or skip."""
        return self.kinds.total()

    def _line(self, row: int) -> int:
        return self.dataset.rows.line(row)

    def as_dict(self) -> dict[str, Any]:
        """The whole report in values that JSON has; numbers that nothing was counted for are null."""
        widths, heights = (Counter[int](), Counter[int]())
        for (width, height), count in self.sizes.items():
            widths[width] += count
            heights[height] += count
        repeated = {row_id: [self._line(row) for row in rows] for row_id, rows in self.repeated_ids.items()}
        return {
            "file": self.dataset.rows.path,
            "rows": self.rows,
            "good": self.rows - self.bad,
            "bad": {"rows": self.bad, "kinds": dict(self.kinds.most_common()), "first": self.messages},
            "images": {
                "rows": self.sizes.total(),
                "different": len(self.images),
                "width": _spread(widths),
                "height": _spread(heights),
                "modes": dict(self.modes.most_common()),
                "stored_turned": self.lying,
            },
            "texts": {
                side: {
                    "tokens": _spread(self.tokens[side]),
                    "limit": getattr(self.dataset.config, option),
                    "cut_rows": self.cut[side],
                }
                for side, option in SIDES.items()
            },
            "unknown_words": {"rows": self.with_unknown, "words": dict(self.unknown.most_common())},
            "answers": {"counts": dict(self.answers.most_common()), "outside": dict(self.outside.most_common())},
            "ids": {
                "repeated": len(repeated),
                "first_lines": dict(list(repeated.items())[:SHOWN]),
                "not_numbers": self.ids_of_texts,
            },
            "against": self.against,
        }

    def lines(self) -> Iterator[str]:
        """The report for people; what is wrong stands at the end."""
        facts = self.as_dict()
        images = facts["images"]
        if images["rows"]:
            modes = ", ".join(f"{mode} ({count:,})" for mode, count in images["modes"].items())
            sides = ", ".join(f"{side} {_written(images[side])}" for side in ("width", "height"))
            yield f"Images: {images['different']:,} different in {images['rows']:,} rows; {sides}; {modes}."
        for side, text in facts["texts"].items():
            if text["tokens"]["most"]:
                flag = f"--{SIDES[side].replace('_', '-')}={text['limit']}"
                yield f"Tokens of the {side}: {_written(text['tokens'])}; rows that {flag} cuts: {text['cut_rows']:,}."
        if self.answers:
            yield f"Answers: {len(self.answers):,} different: {listed(self.answers)}."
        if self.outside:
            yield f"Answers outside the answer set: {listed(self.outside)}."
        if self.repeated_ids:
            row_id, lines = next(iter(facts["ids"]["first_lines"].items()))
            shown = f"{', '.join(map(str, lines[:-1]))} and {lines[-1]}"
            yield f"Repeated ids: {len(self.repeated_ids):,}, such as {quoted(row_id)} in lines {shown}."
        if self.against:
            count, first = self.against["shared_images"], self.against["first_lines"][:1]
            lines = "".join(f", the first in line {ours}, there in line {other}" for ours, other in first)
            yield f"Images that {self.against['file']} has too: {count:,}{lines}."
        yield f"{facts['good']} of {self.rows} rows are good."
        for reason, count in self.kinds.most_common():
            yield f"{count} x {reason}"
        if self.unknown:
            yield f"{self.with_unknown} rows have words outside the vocabulary: {listed(self.unknown)}."
        if self.lying:
            yield f"{self.lying} good rows have an image that --exif-orientation would turn upright."
        if self.ids_of_texts and self.server:
            yield (
                f"{self.ids_of_texts} ids are not integers, such as {quoted(self.first_text_id)}: "
                f"{self.server.name} does not take them, training and evaluation do."
            )


def listed(words: Counter[str]) -> str:
    """The most frequent words, each with how often, and how many more there are."""
    shown = ", ".join(f"{quoted(word)} ({count:,})" for word, count in words.most_common(SHOWN))
    return f"{shown} and {len(words) - SHOWN:,} more" if len(words) > SHOWN else shown


def _spread(counts: Counter[int]) -> Mapping[str, int | None]:
    """Least, median and most of numbers, each with how often it stands."""
    if not counts:
        return dict.fromkeys(("least", "median", "most"))
    return {"least": min(counts), "median": median_low(counts.elements()), "most": max(counts)}


def _written(spread: Mapping[str, int | None]) -> str:
    form = "{least:,}" if spread["least"] == spread["most"] else "{least:,} to {most:,} (median {median:,})"
    return form.format_map(spread)


def _kind(message: str, path: str) -> str:
    """A message without what differs from row to row: the place, quoted values and numbers."""
    reason = message.removeprefix(path).partition(": ")[2]
    return re.sub(r"'[^']*'|\"[^\"]*\"|\b\d[\d.,]*", "...", reason)
