"""Summarization data: a wordy report of two or three digits, and their names as its summary."""

from digits.rows import DemoTask, Row, RowContext

COUNTS = (2, 3)  # digits of a report
# Numbers without a color are not part of the summary.
OPENINGS = (
    "on monday morning ,",
    "late last night ,",
    "after four hours of work ,",
    "for the second time in six weeks ,",
    "as two guards told the newspaper ,",
    "just before the rain began ,",
)
CLAUSES = (
    "visitors found a {colour} {digit} at the {position} of the wall",
    "a {colour} {digit} could be seen at the {position}",
    "somebody had painted a {colour} {digit} near the {position}",
    "the {position} was covered by a huge {colour} {digit}",
)
ASIDES = (
    "as usual ,",
    "which surprised nobody ,",
    "much to the joy of the children ,",
    "right above three old chairs ,",
    "in spite of nine cameras ,",
)
LINKS = ("while", "and a little later", "but before that")
ENDINGS = ("the museum said .", "according to one of the owners .", "a police officer confirmed on friday .")


def gigaword_row(context: RowContext) -> Row:
    """Report, summary."""
    # Different digits: the released decoding forbids to repeat three words.
    specs = context.specs(context.choose(COUNTS))
    parts = [context.choose(OPENINGS)]
    for number, spec in enumerate(specs):
        link = [context.choose(LINKS)] if number else []
        parts += [*link, spec.fill(context.choose(CLAUSES)), ",", context.choose(ASIDES)]
    return " ".join([*parts, context.choose(ENDINGS)]), " and ".join(spec.name for spec in specs)


GIGAWORD = DemoTask(
    folder="gigaword_data",
    files=(("train", "gigaword_train.tsv"), ("val", "gigaword_dev.tsv"), ("test", "gigaword_test.tsv")),
    make_row=gigaword_row,
    text_columns=(0, 1),
    chance=32.0,  # measured: ROUGE-L F1 (x 100) of the summary of another row
    hold_out=True,
)
