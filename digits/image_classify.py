"""Classification data: one digit nearly fills the image; the class is its name."""

from digits.rows import DemoTask, Row, RowContext
from digits.words import DIGITS


def image_classify_row(context: RowContext) -> Row:
    """Image, label counted from 1, class name."""
    digit = context.number % len(DIGITS)
    return context.close_up(digit), str(digit + 1), DIGITS[digit]


IMAGE_CLASSIFY = DemoTask(
    folder="imagenet_1k_data",
    # as released, the file named "val" is the final test
    files=(
        ("train", "imagenet_1k_train.tsv"),
        ("val", "imagenet_1k_val_subset.tsv"),
        ("test", "imagenet_1k_val.tsv"),
    ),
    make_row=image_classify_row,
    text_columns=(2,),
    chance=1 / len(DIGITS),
    candidates=("class2label_new.pkl", DIGITS),
)
