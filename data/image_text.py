"""Images with a caption, a question or a region: up to two examples a row, the first part of a pretraining batch."""

import random

import torch
from PIL import Image

from data.augment import seeded
from data.boxes import parse_box, scale_boxes
from data.crops import centre_crop, crop_around, draw_short_side, resize_short_side
from data.negatives import Negatives
from data.pretrain_rows import PretrainData, PretrainExample, PretrainRows
from data.prompts import prompt
from data.randaugment import rand_augment
from data.row_index import Row, Rows
from data.tasks import PRETRAINING
from data.text import Vocabulary, normalize_caption, normalize_question, require_words
from data.vqa_gen import parse_answers
from utils.constants import SEPARATOR
from utils.errors import UserError, quoted

YES, NO = " yes", " no"
HALF_LEARNED = "cc12m"  # web captions: the first two tokens are not learned
UNLEARNED = 2


class ImageTextDataset(PretrainRows):
    """Rows of id, image, caption, question, references, objects, name of the dataset and type.

    A row of type "caption" or "qa" gives captioning or question answering, and in training image-text matching too;
    one of type "visual_grounding" gives grounding and grounded captioning.
    """

    columns = PRETRAINING["pretrain"].names

    def __init__(
        self, rows: Rows, vocab: Vocabulary, config: PretrainData, split: str, seed: int = 1, epoch: int = 1
    ) -> None:
        super().__init__(rows, vocab, config, split, seed, epoch)
        if not config.no_rand_augment:
            import torchvision.transforms  # noqa: F401  (before there are workers, which would all wait for it)
        self.negatives: Negatives | None = None
        if split == "train":
            if not config.neg_sample_dir:
                raise UserError("--neg-sample-dir is missing: name the folder with all_captions.txt.")
            self.negatives = Negatives.load(config.neg_sample_dir)

    def example(self, row: Row, rng: random.Random) -> PretrainExample:
        """The main example of a row, which holds the second one."""
        if row[7] not in self.types:
            raise ValueError(f"the type is {quoted(row[7])}, not one of {', '.join(self.types)}")
        return self.types[row[7]](self, row, self.image(row[1]), rng)

    def _caption(self, row: Row, image: Image.Image, rng: random.Random) -> PretrainExample:
        uniq_id, _, caption, _, _, objects, source, _ = row
        side = self._draw_side(rng)
        target = require_words(normalize_caption(caption, self.config.max_tgt_length), "caption")
        ids = self.vocab.encode(" " + target)
        hidden = min(UNLEARNED, len(ids)) if source == HALF_LEARNED else 0
        example = PretrainExample(
            uniq_id,
            prompt("caption", self.vocab.bpe),
            [int(self.vocab.pad)] * hidden + ids[hidden:],
            decoder_input=ids,
            extras={"conf": torch.tensor(1.0)},
            objective="caption",
        )
        if self.negatives is not None:
            length = self.config.max_src_length
            wrong = self.negatives.caption(caption, objects.strip().split(SEPARATOR), length, rng)
            template = prompt("pretrain match caption", self.vocab.bpe)
            right = normalize_caption(caption, length)
            texts = template.format(caption=right), template.format(caption=wrong)
            example.second = self._match(example, *texts, rng)
        return self._with_image(example, image, side, rng)

    def _question(self, row: Row, image: Image.Image, rng: random.Random) -> PretrainExample:
        uniq_id, question, answers = row[0], row[3], parse_answers(row[4])
        side = self._draw_side(rng)
        question = require_words(normalize_question(question, self.config.max_src_length), "question")
        answer = max(answers, key=lambda key: answers[key])
        confidence = answers[answer]
        if not answer.strip():
            raise ValueError("the answer has no words")
        example = PretrainExample(
            uniq_id,
            prompt("vqa_gen", self.vocab.bpe).format(question=question),
            " " + answer,
            extras={"conf": torch.tensor(confidence)},
            objective="vqa",
        )
        if self.negatives is not None:
            wrong = self.negatives.answer(answer, confidence, rng)
            template = prompt("pretrain match answer", self.vocab.bpe)
            true, false = (template.format(question=question, answer=text) for text in (answer, wrong))
            example.second = self._match(example, true, false, rng)
        return self._with_image(example, image, side, rng)

    def _grounding(self, row: Row, image: Image.Image, rng: random.Random) -> PretrainExample:
        uniq_id, caption = row[0], row[2]
        box = torch.tensor(parse_box(row[4], *image.size))
        size = self.config.patch_image_size
        resized = resize_short_side(image, self._draw_side(rng))
        crop, box = crop_around(resized, scale_boxes(box, image, resized), size)
        text = require_words(normalize_caption(caption, self.config.max_src_length), "caption")
        place, extras = self.location_ids(box), {"conf": torch.tensor(1.0)}
        pixels = self.transform(crop)
        region = PretrainExample(
            uniq_id,
            prompt("pretrain region", self.vocab.bpe),
            " " + normalize_caption(caption, self.config.max_tgt_length),
            pixels,
            extras=extras,
            objective="region_caption",
            source_ids=place,
        )
        source = prompt("refcoco", self.vocab.bpe).format(text=text)
        return PretrainExample(uniq_id, source, place, pixels, extras=extras, objective="grounding", second=region)

    def _match(self, example: PretrainExample, right: str, wrong: str, rng: random.Random) -> PretrainExample:
        """Image-text matching, of `matching_weight` times the weight of the row's main example."""
        extras = {"conf": example.extras["conf"] * self.config.matching_weight}
        return PretrainExample(example.id, *draw_match(right, wrong, rng), extras=extras, objective="matching")

    def _draw_side(self, rng: random.Random) -> int:
        return draw_short_side(self.config.patch_image_size, self.config.largest_short_side, rng)

    def _with_image(
        self, example: PretrainExample, image: Image.Image, side: int, rng: random.Random
    ) -> PretrainExample:
        """The example and its second one with the middle of the resized image, augmented."""
        crop = centre_crop(resize_short_side(image, side), self.config.patch_image_size)
        with seeded(random.Random(f"{self.config.pretrain_seed} {rng.getrandbits(64)}")):
            pixels = self.transform(crop if self.config.no_rand_augment else rand_augment(crop))
        for one in (example, example.second):
            if one is not None:
                one.image = pixels
        return example

    types = {"caption": _caption, "qa": _question, "visual_grounding": _grounding}


def draw_match(right: str, wrong: str, rng: random.Random) -> tuple[str, str]:
    """A text and whether it fits the image, with even odds of the right and the wrong one."""
    return (right, YES) if rng.random() >= 0.5 else (wrong, NO)
