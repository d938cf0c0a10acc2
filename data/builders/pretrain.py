"""Pretraining files from a folder of images and COCO-style annotations.

    python -m data.build_pretrain --images train2014 --captions captions_train2014.json \
        --instances instances_train2014.json --output dataset/pretrain_data

Writes what `--task=unify_task` reads: vision_language_examples.tsv, detection_examples.tsv and negative_sample/; with
`--texts` text_examples.tsv, with a VQGAN image_examples.tsv. Files appear when all of them are complete.
"""

import argparse
import base64
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from PIL import Image
from tqdm import tqdm

from data.builders import image_codes
from data.builders.coco_annotations import AnnotatedImage, Annotations, BadEntries, Box, group_answers
from data.image_text import HALF_LEARNED
from data.images import MAX_PIXELS, decode_image, image_size
from data.negatives import ANSWER_FILE, CAPTION_FILE, OBJECT_FILE
from data.vqa_gen import join_answers
from models.vqgan import from_pil
from utils.constants import SEPARATOR
from utils.errors import UserError
from utils.files import atomic_write, decode_text, read_file
from utils.options import program_name
from utils.program import program

PAIRS, DETECTION, TEXTS, CODES = (f"{kind}_examples.tsv" for kind in ("vision_language", "detection", "text", "image"))
NEGATIVES = "negative_sample"
SIDE, MIDDLE = 256, 128  # pixels of an image for image infilling, and of the part of it that has codes
JPEG_QUALITY = 95


@dataclass
class Stored:
    """An image as the files hold it: base64 of its bytes, its size, and stored pixels per pixel of the original."""

    text: str
    width: int
    height: int
    scale: tuple[float, float] = (1.0, 1.0)

    def box(self, box: Box) -> str:
        """x0,y0,x1,y1 in stored pixels of x, y, width, height, cut at the edges; "" if less than a pixel is left."""
        x, y, width, height = box
        corners = [value * self.scale[i % 2] for i, value in enumerate((x, y, x + width, y + height))]
        x0, y0, x1, y1 = (
            min(max(value, 0.0), float(limit))
            for value, limit in zip(corners, (self.width, self.height) * 2, strict=True)
        )
        return f"{x0:.2f},{y0:.2f},{x1:.2f},{y1:.2f}" if min(x1 - x0, y1 - y0) >= 1 else ""


def store(data: bytes, max_side: int | None, max_pixels: int = MAX_PIXELS) -> Stored:
    """An image file as it is or, larger than `max_side` pixels, as a smaller JPEG.

    ValueError if it is no image, or one of more than `max_pixels` pixels.
    """
    size = image_size(data, max_pixels)
    if max_side is None or max(size) <= max_side:
        return Stored(base64.b64encode(data).decode(), *size)
    small = [max(1, round(side * max_side / max(size))) for side in size]
    resized = decode_image(data, max_pixels).resize((small[0], small[1]), Image.Resampling.BICUBIC)
    return Stored(_jpeg(resized), *resized.size, (small[0] / size[0], small[1] / size[1]))


def _jpeg(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(file.getvalue()).decode()


def middle_square(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """An image as image infilling wants it: the central square at 256 x 256 pixels, base64 of a JPEG."""
    pixels = from_pil(decode_image(data, max_pixels), SIDE).add(1).mul(127.5).round().byte()  # (3, R, R)
    return _jpeg(Image.fromarray(pixels.permute(1, 2, 0).numpy()))


def mentioned(text: str, names: Iterable[str]) -> list[str]:
    """The names that stand in a text as words, also in the plural: matching exchanges them."""
    return [name for name in dict.fromkeys(names) if re.search(rf"\b{re.escape(name)}(?:e?s)?\b", text)]


def pair_rows(image: AnnotatedImage, stored: Stored, source: str) -> Iterator[tuple[str, ...]]:
    """Rows of vision_language_examples.tsv: an image's captions, questions and phrases that still have a box."""
    names = [region.text for region in image.objects]
    for name, text in image.captions:
        objects = SEPARATOR.join(mentioned(text, names))
        yield f"caption_{name}", stored.text, text, "", "", objects, source, "caption"
    for question in image.questions:
        refs = join_answers(question.answers)
        objects = SEPARATOR.join(mentioned(question.text, names))
        yield f"qa_{question.id}", stored.text, "", question.text, refs, objects, source, "qa"
    for region in image.phrases:
        if box := stored.box(region.box):
            yield f"region_{region.id}", stored.text, region.text, "", box, "", source, "visual_grounding"


def detection_row(name: str, image: AnnotatedImage, stored: Stored) -> tuple[str, ...] | None:
    """Row of detection_examples.tsv; None if no object is on the image."""
    objects = [f"{box},{obj.id},{obj.text}" for obj in image.objects if (box := stored.box(obj.box))]
    return (name, stored.text, SEPARATOR.join(objects)) if objects else None


class Files:
    """The data files being written, and how many rows each has."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.rows: Counter[str] = Counter()
        self.small_boxes = 0  # left out
        self._open: dict[str, BinaryIO] = {}

    def write(self, name: str, row: Iterable[str]) -> None:
        """Appends a row to a file of the folder."""
        if name not in self._open:
            self._open[name] = self.stack.enter_context(atomic_write(self.folder / name))
        self._open[name].write(("\t".join(row) + "\n").encode())
        self.rows[name] += 1


def write_images(annotations: Annotations, flags: argparse.Namespace, files: Files, squares: BinaryIO | None) -> None:
    """Every row that holds an image; each file is read once. `squares` takes id and image for image infilling.

    Images that are skipped are removed from the annotations, of which the negative texts are made.
    """
    images = [(name, image) for name, image in annotations.images.items() if image.is_used()]
    for name, image in tqdm(images, desc="images", unit="image", mininterval=1):
        path = flags.images / image.file_name
        try:
            data = read_file(path)
            stored = store(data, flags.max_side, flags.max_image_pixels)
            square = "" if squares is None else middle_square(data, flags.max_image_pixels)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            annotations.bad.add(str(path), f"the image cannot be read ({reason})")
            del annotations.images[name]
            continue
        files.small_boxes += sum(not stored.box(region.box) for region in (*image.objects, *image.phrases))
        for row in pair_rows(image, stored, flags.dataset_name):
            files.write(PAIRS, row)
        if (objects := detection_row(str(name), image, stored)) is not None:
            files.write(DETECTION, objects)
        if squares is not None:
            squares.write(f"{name}\t{square}\n".encode())


def write_texts(path: Path, files: Files) -> None:
    """Rows of text_examples.tsv: the lines of a file that have words."""
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(tqdm(lines, desc=path.name, unit="line", mininterval=1), 1):
                try:
                    text = " ".join(decode_text(line).split())
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}, line {number} is not UTF-8 ({error}); correct it.") from error
                if text:
                    files.write(TEXTS, (str(number), text))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    if not files.rows[TEXTS]:
        raise UserError(f"{path} has no texts; check the path.")


def write_codes(squares: Path, flags: argparse.Namespace, files: Files) -> None:
    """Rows of image_examples.tsv: the images of a file of (id, image), and the codes of their middle."""
    codes = squares.with_name("codes.tsv")
    words = ["encode", f"--file={squares}", f"--outputs={codes}", "--selected-cols=0,1", f"--code-image-size={SIDE}"]
    words += [f"--crop={MIDDLE}", "--rank=0", "--world-size=1", f"--vqgan-model-path={flags.vqgan_model_path}"]
    image_codes.encode(image_codes.parse_args([*words, f"--vqgan-config-path={flags.vqgan_config_path}"]))
    with open(squares, encoding="utf-8-sig") as images, open(codes, encoding="utf-8-sig") as rows:
        for image, row in zip(images, rows, strict=True):
            files.write(CODES, (image.rstrip("\n"), row.rstrip("\n").split("\t")[1]))


def negatives(annotations: Annotations) -> tuple[dict[str, None], dict[str, None]]:
    """Different captions and categories; UserError if there are too few to draw wrong ones."""
    captions = dict.fromkeys(text for image in annotations.images.values() for _, text in image.captions)
    names = dict.fromkeys(annotations.categories.values())
    for found, what in ((captions, "captions"), (names, "categories")):
        if len(found) < 2:
            raise UserError(f"The annotations have {len(found)} different {what}; matching needs at least two.")
    return captions, names


def write_negatives(annotations: Annotations, files: Files) -> None:
    """The files of negative_sample/; UserError as of `negatives`."""
    captions, names = negatives(annotations)
    (files.folder / NEGATIVES).mkdir(exist_ok=True)
    for caption in captions:
        files.write(f"{NEGATIVES}/{CAPTION_FILE}", (caption,))
    for name in names:
        files.write(f"{NEGATIVES}/{OBJECT_FILE}", (name,))
    answers = group_answers(annotations.answer_kinds)
    files.write(f"{NEGATIVES}/{ANSWER_FILE}", (json.dumps(answers, ensure_ascii=False, indent=1),))


def build(flags: argparse.Namespace) -> Counter[str]:
    """Writes all files and returns their numbers of rows; what is bad is judged by `--skip-bad-rows`.

    Raises:
        UserError: a file or entry that cannot be used, or an output that exists.
    """
    bad = BadEntries(flags.skip_bad_rows)
    annotations = Annotations(bad)
    annotations.add_captions(flags.captions)
    annotations.add_instances(flags.instances)
    if flags.refs:
        annotations.add_phrases(flags.refs)
    if flags.questions:
        annotations.add_questions(flags.questions, flags.vqa_annotations)
    flags.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files = Files(flags.output, stack)
        if flags.texts:
            write_texts(flags.texts, files)
        negatives(annotations)  # before the images, which take long
        if flags.vqgan_model_path:
            work = Path(stack.enter_context(TemporaryDirectory(prefix=".image_examples", dir=flags.output)))
            with open(work / "squares.tsv", "wb") as squares:
                write_images(annotations, flags, files, squares)
            write_codes(work / "squares.tsv", flags, files)
        else:
            write_images(annotations, flags, files, None)
        if not files.rows[PAIRS]:
            raise UserError(f"No image of the annotations is in {flags.images}; check --images.")
        write_negatives(annotations, files)
    if files.small_boxes:
        print(f"{files.small_boxes} boxes with less than a pixel on their image were left out.")
    if bad.count:
        print(f"{bad.count} entries or images were skipped.")
    return files.rows


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Flags of the program."""
    parser = argparse.ArgumentParser(
        program_name("python -m data.build_pretrain"), description="Write pretraining files."
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--captions", type=Path, required=True, help="COCO captions, e.g. captions_train2014.json")
    parser.add_argument("--instances", type=Path, required=True, help="COCO objects, e.g. instances_train2014.json")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--refs", type=Path, help="annotations of phrases with boxes, for grounding")
    parser.add_argument("--questions", type=Path, help="VQA questions; goes with --vqa-annotations")
    parser.add_argument("--vqa-annotations", type=Path, help="VQA answers")
    parser.add_argument("--texts", type=Path, help="text file with one text per line, for text infilling")
    parser.add_argument("--vqgan-model-path", type=Path, help="the VQGAN's last.ckpt, for image infilling")
    parser.add_argument("--vqgan-config-path", type=Path, help="the VQGAN's model.yaml")
    parser.add_argument("--max-side", type=int, help="shrink larger images to this many pixels (default: keep files)")
    parser.add_argument(
        "--dataset-name",
        default="coco",
        help=f"column 6; with {HALF_LEARNED} the first two tokens of captions are not learned (default %(default)s)",
    )
    parser.add_argument(
        "--max-image-pixels", type=int, default=MAX_PIXELS, help="larger images are refused (default %(default)s)"
    )
    parser.add_argument("--skip-bad-rows", action="store_true", help="skip and count unusable entries")
    return parser.parse_args(argv)


def check(flags: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together, missing inputs and outputs that exist."""
    for one, other in (("questions", "vqa_annotations"), ("vqgan_model_path", "vqgan_config_path")):
        if (getattr(flags, one) is None) != (getattr(flags, other) is None):
            raise UserError(f"--{one.replace('_', '-')} and --{other.replace('_', '-')} go together; pass both.")
    if not flags.images.is_dir():
        raise UserError(f"There is no folder {flags.images}; --images names the folder of the images.")
    for path in (flags.vqgan_model_path, flags.vqgan_config_path):
        if path is not None and not path.is_file():
            raise UserError(f"There is no {path}; check the path.")
    if flags.max_side is not None and flags.max_side < 1:
        raise UserError(f"--max-side is {flags.max_side}; pass a number of pixels.")
    if len(flags.dataset_name.split()) != 1:
        raise UserError(f"--dataset-name is {flags.dataset_name!r}; pass a word.")
    negatives = (f"{NEGATIVES}/{name}" for name in (CAPTION_FILE, OBJECT_FILE, ANSWER_FILE))
    for name in (PAIRS, DETECTION, TEXTS, CODES, *negatives):
        if (flags.output / name).exists():
            raise UserError(f"{flags.output / name} exists already: delete it or choose another --output.")


@program("python -m data.build_pretrain")
def main(argv: list[str] | None = None) -> int:
    """Build, and say what was written and what was not; 2 on a user's mistake."""
    flags = parse_args(argv)
    check(flags)
    rows = build(flags)
    sources = {PAIRS: "", DETECTION: "no objects", TEXTS: "no --texts", CODES: "no --vqgan-model-path"}
    for name, reason in sources.items():
        print(f"{rows[name]} rows -> {flags.output / name}" if rows[name] else f"{name} is not written: {reason}.")
    absent = [what for what, flag in (("questions", flags.questions), ("grounding", flags.refs)) if flag is None]
    if absent:
        print(f"{PAIRS} has no rows of {' and '.join(absent)}: no --questions or --refs was given.")
    print(f"negative texts -> {flags.output / NEGATIVES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
