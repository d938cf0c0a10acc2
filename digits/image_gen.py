"""Text-to-image data: one digit nearly fills the image, the text names it; and how legible drawn images are.

python -m digits.image_gen RESULTS_FOLDER SHEET.png     # after run_scripts/image_gen/evaluate_image_gen.sh
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from digits.legibility import Legibility, legibility
from digits.rows import DemoTask, Row, RowContext
from digits.scene import Box
from digits.words import COLOURS, DIGITS, DigitSpec
from utils.errors import UserError
from utils.files import atomic_write, read_text

SIZE = 64  # side of the images in pixels, 8 x 8 codes
FRAME = Box(0, 0, SIZE, SIZE)  # where its digit is
COLUMNS, ROWS, TEXT_HEIGHT = 10, 6, 12  # of the contact sheet
POSITIONS = {"id": 0, "image": 2, "text": 3}  # columns of the files, which hold images where the released have codes


def image_gen_row(context: RowContext, size: int = SIZE) -> Row:
    """Id, image id, image, text; `utils.image_codes` makes codes of the images. All digits come equally often."""
    scene = replace(context, size=size).close_up(context.number % len(DIGITS))
    return str(context.id), str(context.id), scene, f"a {scene.specs[0].name}"


IMAGE_GEN = DemoTask(
    folder="coco_image_gen_data",
    files=(("train", "pictures_train.tsv"), ("val", "pictures_dev.tsv"), ("test", "pictures_full_test.tsv")),
    make_row=image_gen_row,
    text_columns=(POSITIONS["text"],),
    chance=1 / len(DIGITS),  # that a drawn digit is read as the one asked for
)


def read_drawn(results: Path) -> list[tuple[str, Image.Image]]:
    """Prompts and images of an evaluation; OSError or ValueError if there are none."""
    records = json.loads(read_text(results / "test_predict.json"))
    return [(record["caption"], Image.open(results / record["image"]).convert("RGB")) for record in records]


def check(drawn: list[tuple[str, Image.Image]]) -> Legibility:
    """How often digit and color of a prompt are read in its image."""
    specs = [DigitSpec(colour, digit, "center") for _, colour, digit in (prompt.split() for prompt, _ in drawn)]
    return legibility([image for _, image in drawn], specs, FRAME)


def draw_sheet(drawn: list[tuple[str, Image.Image]], path: Path) -> None:
    """The first images with their prompts above them."""
    sheet = Image.new("RGB", (COLUMNS * (SIZE + 4), ROWS * (SIZE + TEXT_HEIGHT + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (prompt, image) in enumerate(drawn[: COLUMNS * ROWS]):
        row, column = divmod(number, COLUMNS)
        left, top = column * (SIZE + 4), row * (SIZE + TEXT_HEIGHT + 4)
        pen.text((left, top), prompt.removeprefix("a "), fill="black")
        sheet.paste(image, (left, top + TEXT_HEIGHT))
    with atomic_write(path) as file:
        sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(file, "PNG")


def main(argv: list[str]) -> int:
    """Draws the sheet and writes legible digits and colors to `test_scores.json`."""
    try:
        results, sheet = (Path(arg) for arg in argv)
        drawn = read_drawn(results)
        found = check(drawn)
        draw_sheet(drawn, sheet)
        (results / "test_scores.json").write_text(json.dumps({"digit": found.digit, "colour": found.colour}, indent=4))
    except (OSError, ValueError, KeyError, UserError) as error:
        print(f"python -m digits.image_gen: error: {error}", file=sys.stderr)
        return 2
    print(f"digit {found.digit:.3f} (chance {1 / len(DIGITS):.3f}), color {found.colour:.3f} ({1 / len(COLOURS):.3f})")
    print(sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
