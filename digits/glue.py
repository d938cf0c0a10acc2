"""GLUE-like data: seven tasks on sentences about digits, labels in turn so that they balance."""

from collections.abc import Callable

from data.glue import GLUE
from digits.claims import STATEMENTS, state
from digits.glue_pairs import mnli_row, mrpc_row, qnli_row, qqp_row, rte_row
from digits.rows import DemoTask, Row, RowContext

COUNTS = (1, 2)  # specs of a sentence of cola
ADJECTIVES = (
    ("horrible", "dreadful", "boring", "clumsy", "terrible", "messy", "dull", "poor"),
    ("lovely", "beautiful", "wonderful", "charming", "pleasant", "brilliant", "delightful", "splendid"),
)
OPINIONS = (
    "the {colour} {digit} at the {position} looks {adjective}",
    "what a {adjective} {colour} {digit} at the {position}",
    "somebody has drawn a really {adjective} {digit} in {colour}",
    "the {digit} at the {position} is {adjective} and so is the {colour} paint",
)


def cola_row(context: RowContext) -> Row:
    """Source, sentence, label: 0 if two words are swapped or one is doubled."""
    sentence = state(context.specs(context.choose(COUNTS)), context.choose(STATEMENTS))
    acceptable = context.number % 2
    return "demo", sentence if acceptable else _spoil(context, sentence.split()), str(acceptable)


def _spoil(context: RowContext, words: list[str]) -> str:
    # not at the beginning: "is there" would begin a question
    place = int(context.rng.integers(1, len(words) - 1))
    if context.choose((True, False)):
        words[place : place + 2] = reversed(words[place : place + 2])
    else:
        words.insert(place, words[place])
    return " ".join(words)


def sst2_row(context: RowContext) -> Row:
    """Sentence, label: 0 negative, 1 positive."""
    positive = context.number % 2
    (spec,) = context.specs(1)
    opinion = context.choose(OPINIONS).replace("{adjective}", context.choose(ADJECTIVES[positive]))
    return spec.fill(opinion), str(positive)


def _task(name: str, make_row: Callable[[RowContext], Row], text_columns: tuple[int, ...]) -> DemoTask:
    answers = tuple(GLUE[name].answers)
    return DemoTask(
        folder="glue_data",
        files=(("train", f"{name}_train.tsv"), ("val", f"{name}_dev.tsv")),
        make_row=make_row,
        text_columns=text_columns,
        chance=1 / len(answers),  # accuracy
        words=answers,
        hold_out=True,
    )


GLUE_TASKS = {
    "cola": _task("cola", cola_row, (1,)),
    "mnli": _task("mnli", mnli_row, (0, 1)),
    "mrpc": _task("mrpc", mrpc_row, (0, 1)),
    "qnli": _task("qnli", qnli_row, (1, 2)),
    "qqp": _task("qqp", qqp_row, (3, 4)),
    "rte": _task("rte", rte_row, (1, 2)),
    "sst2": _task("sst2", sst2_row, (0,)),
}
