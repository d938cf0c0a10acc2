"""Many items through a predictor: images are read ahead in threads, answers are recorded chunk by chunk.

A chunk is consecutive items that are answered together. Which items it holds depends on their numbers only, not on what
was answered before or on the number of processes, so that a resumed run and several processes give the same scores.
"""

import hashlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from tqdm import tqdm

from data.items import Item, Source
from data.text import has_words
from models.predictor.fitting import Fitting
from models.predictor.predictor import OFAPredictor
from utils.errors import ItemError, UserError
from utils.files import parse_json, whole_characters
from utils.record_file import Numbering, RecordFile, record_line
from utils.record_parts import ANSWERED, Entry, RecordParts

LOG_SECONDS = 30  # between two lines of progress where there is no terminal
AHEAD = 2  # chunks whose images are being read while another is answered
TEXTS_AT_ONCE = 8  # batches in a chunk without images: the predictor sorts its rows by length


@dataclass
class Place:
    """An item on its way.

    Attributes:
        number: among all items. done: whether a record is there. row: see `Numbering`.
        image: what will be its image, if it has one. problem: why it cannot be answered.
    """

    number: int
    item: Item
    done: bool
    row: int | None = None
    values: dict[str, Any] = field(default_factory=dict)
    image: "Future[Any] | None" = None
    problem: str = ""

    @property
    def id(self) -> Any:
        """The id of its record."""
        return self.number if self.item.id is None else self.item.id

    @property
    def digest(self) -> str:
        """Tells its image and texts from those of other items; images are told by their paths or their content."""
        digest = hashlib.blake2b(digest_size=8)
        for name, value in sorted(self.item.values.items()):
            path = name == "image" and isinstance(value, str)
            text = str(os.path.abspath(value) if path else value)
            shown = value if isinstance(value, bytes) else text.encode("utf-8", "surrogatepass")
            digest.update(f"{name} {len(shown)} ".encode() + shown)
        return digest.hexdigest()

    @property
    def nameless(self) -> bool:
        """Whether its id, if it has one, cannot be read."""
        return bool(self.item.problem) and self.item.id is None


class Ledger(Protocol):
    """Where records go."""

    def wanted(self, numbers: range) -> bool:
        """Whether this process has to read these items; it is asked in their order."""

    def place(self, number: int, item: Item) -> Place:
        """The item's place; it is called in the order of the items that are read."""

    def write(self, answers: Sequence[tuple[Place, Mapping[str, Any]]]) -> None:
        """Records answers."""

    def skip(self, place: Place) -> None:
        """Notes that an item cannot be answered."""


class Lines:
    """Records in input order, to a `RecordFile` or to standard output (None)."""

    def __init__(self, output: RecordFile | None) -> None:
        if output is None and sys.stdout is None:
            raise UserError("Standard output is closed: pass a file with --output.")
        self.output = output
        self.numbering = Numbering(output.ids if output else ())

    def wanted(self, numbers: range) -> bool:
        """Always: the ids before an item decide about its record."""
        return True

    def place(self, number: int, item: Item) -> Place:
        """See `Ledger`."""
        place = Place(number, item, False)
        place.row, place.done = self.numbering.place(number, place.id, place.nameless)
        if place.done and self.output is not None and not item.problem:
            self.output.check(place.id, number, place.digest, item.where)
        return place

    def write(self, answers: Sequence[tuple[Place, Mapping[str, Any]]]) -> None:
        """Appends lines."""
        lines = b"".join(record_line(place.id, result, place.row) for place, result in answers)
        if self.output is not None:
            self.output.write(lines, {(place.id, place.row): place.digest for place, _ in answers})
        else:
            sys.stdout.buffer.write(lines)
            sys.stdout.flush()

    def skip(self, place: Place) -> None:
        """Nothing: an item without a record is tried again."""


class Parts:
    """Records in the parts of one of several processes, which share the chunks.

    Args:
        rank, world: number of this process and of all. size: items in a chunk.
    """

    def __init__(self, parts: RecordParts, rank: int, world: int, size: int) -> None:
        self.parts, self.rank, self.world, self.size = parts, rank, world, size

    def finished(self) -> int:
        """How many items are in chunks of which everything is answered."""
        return sum(len(numbers) for numbers in _numbers(self.parts.total, self.size) if self._answered(numbers))

    def wanted(self, numbers: range) -> bool:
        """Whether the chunk is this process's and not answered."""
        return numbers.start // self.size % self.world == self.rank and not self._answered(numbers)

    def _answered(self, numbers: range) -> bool:
        return self.parts.there.count(ANSWERED, numbers.start, numbers.stop) == len(numbers)

    def place(self, number: int, item: Item) -> Place:
        """See `Ledger`."""
        return Place(number, item, self.parts.there[number] == ANSWERED)

    def write(self, answers: Sequence[tuple[Place, Mapping[str, Any]]]) -> None:
        """Appends lines."""
        self.parts.write(
            [Entry(place.number, place.id, place.nameless, dict(result), place.digest) for place, result in answers]
        )

    def skip(self, place: Place) -> None:
        """Notes it: at the end every item has a line."""
        self.parts.write([Entry(place.number, place.id, place.nameless, None)])


def adopt(parts: RecordParts, output: RecordFile, items: Iterable[Item]) -> None:
    """Takes the records of an output into the parts, which replace it at the end.

    Raises UserError for records of items that are not there, which would be lost, and for parts of other items.
    """
    if not output.ids and not any(parts.there):
        return
    records = {}
    if output.ids:
        with open(output.path, "rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    record = parse_json(line.decode())
                    records[record.pop("id"), record.pop("row", None)] = record
    numbering, taken = Numbering(output.ids), 0
    for number, item in enumerate(items):
        place = Place(number, item, False)
        first = place.id not in numbering.seen
        _, place.done = numbering.place(number, place.id, place.nameless)
        taken += place.done
        if place.done and not item.problem:
            output.check(place.id, number, place.digest, item.where)
        parts.check(number, place.digest, item.where)
        if place.done and parts.there[number] != ANSWERED:
            known = records.get((place.id, number)) or (records[place.id, None] if first else None)
            parts.write([Entry(number, place.id, place.nameless, known, place.digest)])
    if taken < len(output.ids):
        raise UserError(
            f"{output.path} holds {len(output.ids) - taken} records of items that are not among the inputs, which "
            "several processes would remove: pass these inputs too, or name another file."
        )


@dataclass
class Counts:
    """What became of the items of a process.

    Attributes:
        before: they had a record. waited: seconds in which the model waited for images. seconds: of the whole run.
    """

    written: int = 0
    skipped: int = 0
    before: int = 0
    waited: float = 0.0
    seconds: float = 0.0


class Stream:
    """Answers items.

    Args:
        answer: (values by name, items) -> the results' keys of each item's record.
        names: what an item may have. needed: what it must have. defaults: values of items without one.
        size: items in a chunk. threads: that read images.
        total: number of items. finished: those that are never read, because they are answered.
        counted: adds to the number of items that all processes have done, and returns it; None = there is one process.
        shown: whether this process shows progress.
    """

    def __init__(
        self,
        predictor: OFAPredictor,
        answer: Callable[[dict[str, list[Any]]], list[dict[str, Any]]],
        names: Sequence[str],
        needed: Sequence[str],
        defaults: Mapping[str, Any],
        size: int,
        threads: int,
        total: int,
        finished: int = 0,
        counted: Callable[[int], int] | None = None,
        shown: bool = True,
    ) -> None:
        self.predictor, self.answer = predictor, answer
        self.names, self.needed, self.defaults = names, needed, defaults
        self.size, self.threads = size, threads
        self.total, self.finished, self.counted, self.shown = total, finished, counted, shown
        self.counts, self.fitting = Counts(), Fitting(predictor, self._say)

    def run(self, sources: Sequence[Source], ledger: Ledger, unread: set[str], empty: set[str]) -> Counts:
        """Answers what has no record yet."""
        self.started = self.logged = time.monotonic()
        terminal = self.shown and sys.stderr.isatty()
        self.bar = tqdm(total=self.total, initial=self.finished, disable=not terminal, unit="item", dynamic_ncols=True)
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="images")
        try:
            chunks = (self._begin(chunk, pool) for chunk in _chunks(sources, self.size, ledger, unread, empty))
            for chunk in _ahead(chunks):
                self._finish(chunk, ledger)
        finally:
            pool.shutdown(cancel_futures=True)
            self.bar.close()
        self.counts.seconds = time.monotonic() - self.started
        return self.counts

    def _begin(self, chunk: list[Place], pool: ThreadPoolExecutor) -> list[Place]:
        """Checks the items of a chunk and has their images read, each file once."""
        if all(place.done for place in chunk):
            return chunk
        images: dict[Any, Future[Any]] = {}
        for place in chunk:
            place.values = {name: self.defaults.get(name) for name in self.names} | place.item.values
            place.problem = place.item.problem or self._problem(place.values)
            image = place.values.get("image")
            if not place.problem and image is not None:
                if image not in images:
                    images[image] = pool.submit(self.predictor.prepare, image)
                place.image = images[image]
        return chunk

    def _problem(self, values: Mapping[str, Any]) -> str:
        """Why an item cannot be answered, or ''."""
        if missing := [name for name in self.needed if values[name] is None]:
            return f"there is no {missing[0]!r}"
        texts = {name: value for name, value in values.items() if isinstance(value, str) and name != "image"}
        if any(not has_words(texts[name]) for name in self.needed if name in texts):
            return "the text has no words"
        if not all(whole_characters(text) for text in texts.values()):
            return "the text holds half of a surrogate pair, which is not a character"
        return ""

    def _finish(self, chunk: list[Place], ledger: Ledger) -> None:
        """Answers a chunk whose images may still be on their way."""
        if all(place.done for place in chunk):
            self.counts.before += len(chunk)
            return self._progress(len(chunk))
        began = time.monotonic()
        for place in chunk:
            if place.image is not None:
                try:
                    place.values["image"] = place.image.result()
                except ValueError as error:
                    place.problem = str(error)
        self.counts.waited += time.monotonic() - began
        readable = [place for place in chunk if not place.problem]
        if not all(place.done for place in readable):
            self._answer(readable, ledger)
        for place in chunk:
            if place.problem and not place.done:
                self._skip(place, ledger)
        self.counts.before += sum(place.done for place in chunk)
        self._progress(len(chunk))

    def _answer(self, places: list[Place], ledger: Ledger) -> None:
        """Answers items and writes records; where one cannot be answered, the others are, one by one."""
        columns = {name: [place.values[name] for place in places] for name in places[0].values}
        columns["number"], columns["done"] = [place.number for place in places], [place.done for place in places]
        try:
            results = self.fitting(lambda: self.answer(columns))
        except ItemError as error:
            if len(places) == 1:
                places[0].problem = str(error)
            else:
                for place in places:
                    if not place.done:
                        self._answer([place], ledger)
            return
        answers = [(place, result) for place, result in zip(places, results, strict=True) if not place.done]
        ledger.write(answers)
        self.counts.written += len(answers)

    def _skip(self, place: Place, ledger: Ledger) -> None:
        reason, where = " ".join(place.problem.split()).rstrip("."), place.item.where
        self._say(f"{reason if where in reason else f'{where}: {reason}'}; skipped.")
        ledger.skip(place)
        self.counts.skipped += 1

    def _say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def _progress(self, count: int) -> None:
        """Moves the bar or, in a log, writes a line now and then."""
        own = self.counts.before + self.counts.written + self.counts.skipped
        done = self.finished + (self.counted(count) if self.counted else own)
        self.bar.update(done - self.bar.n)
        if self.shown and self.bar.disable and time.monotonic() - self.logged >= LOG_SECONDS:
            self.logged = time.monotonic()
            rate = (done - self.finished - self.counts.before) / (self.logged - self.started)
            left = f", {rate:.1f} a second, {tqdm.format_interval((self.total - done) / rate)} left" if rate else ""
            print(f"{done} of {self.total} items{left}", file=sys.stderr)


def _chunks(
    sources: Sequence[Source], size: int, ledger: Ledger, unread: set[str], empty: set[str]
) -> Iterator[list[Place]]:
    """The chunks that the ledger wants, of all sources one behind the other."""
    starts = [sum(source.size for source in sources[:index]) for index in range(len(sources) + 1)]
    for numbers in _numbers(starts[-1], size):
        if not ledger.wanted(numbers):
            continue
        chunk = []
        for source, start in zip(sources, starts[:-1], strict=True):
            within = range(max(numbers.start - start, 0), min(numbers.stop - start, source.size))
            if within:
                items = zip(within, source.read(unread, empty, within), strict=True)
                chunk += [ledger.place(start + number, item) for number, item in items]
        yield chunk


def _numbers(total: int, size: int) -> Iterator[range]:
    """The numbers of the items in each chunk."""
    return (range(first, min(first + size, total)) for first in range(0, total, size))


def _ahead(chunks: Iterator[list[Place]]) -> Iterator[list[Place]]:
    """The chunks, of which some are begun before they are needed."""
    begun: deque[list[Place]] = deque()
    for chunk in chunks:
        begun.append(chunk)
        if len(begun) > AHEAD:
            yield begun.popleft()
    yield from begun
