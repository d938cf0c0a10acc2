"""Scores a caption result file with the standard COCO metrics.

    python -m metrics.coco_caption RESULT.json ANNOTATIONS.json [OUT.json]

RESULT.json is a list of {"image_id", "caption"}, ANNOTATIONS.json has COCO's caption format. The scores are printed,
or written to OUT.json. Tokenization and METEOR need Java and pycocoevalcap; without them CIDEr-D alone is computed.
"""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metrics.cider import CiderD
from utils.errors import UserError
from utils.files import parse_json, read_text
from utils.predictions import leaderboard_id
from utils.punctuation import remove_punctuation

NO_JAVA_KEY = "CIDEr-D (own scorer, no Java)"
Captions = dict[str, list[str]]  # image id -> captions

logger = logging.getLogger(__name__)


def score_captions(predictions: list[dict[str, Any]], annotations: str | Path | dict[str, Any]) -> dict[str, float]:
    """Score predictions over the images they name.

    Args:
        predictions: one {"image_id", "caption"} for each image.
        annotations: path of a COCO caption file, or its content; ids are equal as numbers or as texts.

    Returns:
        Bleu_1 .. Bleu_4, METEOR, ROUGE_L, CIDEr and, where its models are installed, SPICE; without Java or
        pycocoevalcap only CIDEr-D over lowercased words without punctuation, under `NO_JAVA_KEY`.

    Raises:
        UserError: unreadable or malformed input, an image scored twice, an image without references.
    """
    name = "the annotations"
    if not isinstance(annotations, dict):
        name, annotations = str(annotations), _read_json(annotations)
    hypotheses = _captions(predictions, "the result", "a list of")
    found = _captions(_field(annotations, "annotations"), name, "a COCO file whose annotations are")
    if not hypotheses:
        raise UserError("The result holds no captions; run the evaluation again.")
    repeated = [image for image, captions in hypotheses.items() if len(captions) > 1]
    if repeated:
        raise UserError(f"The result has {len(hypotheses[repeated[0]])} captions of image {repeated[0]}; keep one.")
    missing = [image for image in hypotheses if image not in found]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(hypotheses)} images of the result have no caption in {name} "
            f"(the first is {missing[0]}); give the annotations of the same split."
        )
    references = {image: found[image] for image in hypotheses}
    if shutil.which("java") is None:
        logger.warning("No Java on PATH: only CIDEr-D is computed; install Java for the other scores.")
        return {NO_JAVA_KEY: _own_cider(hypotheses, references)}
    try:
        from metrics import coco_java  # its packages take a second to import, and few programs score captions
    except ImportError as error:
        logger.warning("Only CIDEr-D is computed (%s): pip install pycocoevalcap for the other scores.", error)
        return {NO_JAVA_KEY: _own_cider(hypotheses, references)}
    return coco_java.scores(coco_java.tokenize(hypotheses), coco_java.tokenize(references))


def _read_json(path: str | Path) -> Any:
    try:
        return parse_json(read_text(path))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; check the path.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); write it again.") from error


def _field(content: Any, name: str) -> Any:
    return content.get(name) if isinstance(content, dict) else None


def _captions(records: Any, name: str, container: str) -> Captions:
    """Group the captions of COCO records by image."""
    captions: Captions = {}
    try:
        for record in records:
            captions.setdefault(str(leaderboard_id(str(record["image_id"]))), []).append(
                " ".join(record["caption"].split())
            )
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f'{name} must be {container} {{"image_id": ..., "caption": "..."}} records.') from error
    return captions


def _own_cider(hypotheses: Captions, references: Captions) -> float:
    """CIDEr-D with the references' own document frequencies."""

    def words(captions: list[str]) -> list[str]:
        return [remove_punctuation(caption.lower()) for caption in captions]

    prepared = [words(captions) for captions in references.values()]
    return CiderD.from_references(prepared).score([words(captions)[0] for captions in hypotheses.values()], prepared)[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: print the scores or write them with an indent of 4; a user error exits with 2."""
    parser = argparse.ArgumentParser(prog="python -m metrics.coco_caption", description="COCO caption scores")
    parser.add_argument("result", help='JSON list of {"image_id", "caption"}')
    parser.add_argument("annotations", help="references in COCO caption format")
    parser.add_argument("output", nargs="?", help="write the scores here instead of printing them")
    flags = parser.parse_args(argv)
    try:
        scores = score_captions(_read_json(flags.result), flags.annotations)
        _write(json.dumps(scores, indent=4), flags.output)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _write(text: str, path: str | None) -> None:
    """Print the text, or make it the content of the file at path."""
    if path is None:
        print(text)
        return
    try:
        Path(path).write_text(text + "\n")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}; check the folder.") from error


if __name__ == "__main__":
    main()
