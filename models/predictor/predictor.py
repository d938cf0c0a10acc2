"""`OFAPredictor`: images and texts in, answers with scores out; rows take the same way as in evaluation.

Shapes: B samples, R image side, K candidates or hypotheses.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from data import gigaword, refcoco, snli_ve, vqa_gen
from data.answers import check_prompt_type, read_answers
from data.base import DataConfig, encode_example
from data.collate import collate, prefix_tokens
from data.image_classify import ImageClassifyData
from data.image_gen import ImageGenData, code_count, drawn_text
from data.images import standard_transform
from data.prompts import prompt
from data.sample import Batch, Example
from data.tasks import TASKS
from data.text import Vocabulary
from models.answers import box_options, caption_text, free_text, ranked_names, summary_text
from models.generation import (
    CandidateTrie,
    GenerationConfig,
    Hypothesis,
    generate,
    rank_candidates,
    require_hypotheses,
)
from models.ofa import OFA, OFAConfig
from models.ofa.compiling import compile_layers
from models.ofa.inference import prepare_for_inference
from models.ofa.model import ENCODER_INPUTS
from models.predictor.arguments import (
    Choices,
    answer_sets,
    check_count,
    check_flag,
    check_options,
    check_path,
    check_vqgan,
    choices,
    columns,
    pick_device,
)
from models.predictor.images import ImageFile, ImageLike, PreparedImage, read_image
from models.text_to_image import Painter, code_options, row_generators, sample_codes
from models.weights import load_model
from models.weights.description import Description, describe, load_vocabulary
from utils.checkpoint import PathLike, load_checkpoint
from utils.errors import ItemError, UserError

R = TypeVar("R")
SYMBOL = re.compile(r"( ?<(?:bin|code)_\d+>)")


@dataclass(frozen=True)
class Prediction:
    """A text and how sure the model is of it, from 0 to 1.

    The score of a candidate is its probability among all candidates, that of a free text the geometric mean of its
    tokens' probabilities, end of sentence included.
    """

    text: str
    score: float


@dataclass(frozen=True)
class Box:
    """A box in pixels of the image as given, (x0, y0) top left; the score is that of a free text."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float


class OFAPredictor:
    """A model with its vocabulary and transforms; get one with `OFAPredictor.load`.

    Every method takes one item or a list (or tuple) of them; one result or a list of results comes back, in the same
    order. One image may go with a list of texts, and the other way round. Images are what `read_image` takes.
    Methods that write free text take the options of `GenerationConfig` as keywords, e.g. `beam=1`.

    Attributes:
        batch_size: rows computed at once. description: what is known of the checkpoint. model, vocab: its parts.
        vqgan: checkpoint and yaml for `draw`, or None. painter: of a VQGAN's two files, kept.
    """

    def __init__(
        self,
        model: OFA,
        vocab: Vocabulary,
        description: Description,
        batch_size: int = 16,
        vqgan: tuple[PathLike, PathLike] | None = None,
    ) -> None:
        self.model, self.vocab, self.description = model.eval(), vocab, description
        self.batch_size = check_count("batch_size", batch_size)
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.shared = description.config(DataConfig, "")
        self.transform = standard_transform(self.shared.patch_image_size, self.shared.imagenet_default_mean_and_std)
        self.vqgan = check_vqgan(vqgan)
        self._trie = lru_cache(maxsize=8)(self._make_trie)
        self.painter = lru_cache(maxsize=1)(self._make_painter)

    @classmethod
    def load(
        cls,
        path: PathLike,
        device: str | torch.device = "auto",
        *,
        dtype: str | torch.dtype = "float32",
        batch_size: int = 16,
        ema: bool | None = None,
        vqgan: tuple[PathLike, PathLike] | None = None,
        compile: bool = False,
        int8: bool = False,
        cuda_graphs: bool = False,
        **overrides: Any,
    ) -> "OFAPredictor":
        """A predictor of a checkpoint; what the file does not tell is inferred or asked for.

        Args:
            path: a fairseq file, a Hugging Face folder or a safetensors file.
            device: "auto" takes a GPU if there is one.
            dtype: "float32", "bfloat16" or "float16". int8: int8 weights in the layers, `dtype` for all else.
            ema: take the averaged weights; None = if the model was validated with them and the file holds them.
            vqgan: checkpoint and yaml of the VQGAN that `draw` needs.
            compile: compile the model's layers by `torch.compile`; the first batches take longer.
            cuda_graphs: on a GPU, replay the steps of generation as CUDA graphs.
            overrides: options of the task or the model that win over the file's: bpe_dir, patch_image_size,
                prompt_type, ans2label_file, max_image_size, max_image_pixels, ...

        Raises:
            UserError: not a checkpoint, a wrong argument, an unknown option, one that must be passed: the message
                names it; or the vocabulary or prompts here are not those the checkpoint was trained with.
        """
        kinds = [*dict.fromkeys(row.config for row in TASKS.values()), OFAConfig]
        requested = check_options({name: value for name, value in overrides.items() if value is not None}, kinds)
        check_path("The checkpoint", path)
        check_flag("ema", ema)
        check_flag("compile", compile)
        check_flag("int8", int8)
        check_flag("cuda_graphs", cuda_graphs)
        check_count("batch_size", batch_size)
        check_vqgan(vqgan)
        precision, place = _dtype(dtype), pick_device(device)
        if compile and int8:
            raise UserError("compile and int8 cannot be combined: leave one out.")
        description = describe(load_checkpoint(path, mmap=True), str(path), **requested)
        vocab = load_vocabulary(description)
        if description.card is not None:
            description.card.check_prompts(str(path))
        if ema is None:
            ema = description.averaged and bool(description.options.get("uses_ema"))
        model_options = {f.name for f in fields(OFAConfig)}
        options = {name: requested[name] for name in requested if name in model_options} | {"vocab_size": len(vocab)}
        model = prepare_for_inference(load_model(path, options, ema=ema, device=place), precision, bool(int8))
        model.cuda_graphs = bool(cuda_graphs)
        if compile:
            compile_layers(model)
        return cls(model, vocab, description, batch_size, vqgan)

    def caption(self, images: ImageLike | Sequence[ImageLike], **decoding: Any) -> Prediction | list[Prediction]:
        """What each image shows, without punctuation."""
        (rows,), one = columns(images=images)
        examples = [Example(None, prompt("caption", self.vocab.bpe), "")] * len(rows)
        captions = self._write(examples, rows, self.description.decoding("caption", decoding), caption_text)
        return captions[0] if one else captions

    def answer(
        self,
        images: ImageLike | Sequence[ImageLike],
        questions: str | Sequence[str],
        candidates: Sequence[str] | Sequence[Sequence[str]] | None = None,
        objects: str | Sequence[str] | None = None,
        **decoding: Any,
    ) -> Prediction | list[Prediction]:
        """The answer to a question about each image.

        Args:
            candidates: the answers to choose among, exactly the best one is found; None = those the checkpoint was
                trained with, or any text if it has none; [] = any text. A list of lists has those of each question.
            objects: names of objects in each image joined by `&&`, for models trained with --add-object; these read
                None as no names, as rows of training and evaluation without the column are read.
            decoding: for free answers.

        Raises UserError for a missing file of candidates, see `load`.
        """
        config = self.description.config(vqa_gen.VqaGenData, "vqa_gen")
        if candidates is None:
            candidates = self.description.answers(config, "vqa_gen", "candidates") or []
        free = isinstance(candidates, list | tuple) and not candidates
        inputs = {"images": images, "questions": questions, "objects": objects}
        names = None if free else answer_sets("candidates", candidates)
        (rows, asked, seen, sets), one = columns(("objects", "candidates"), **inputs, candidates=names)
        prompt_type = check_prompt_type(config.prompt_type)
        seen = ["" if names is None and config.add_object else names for names in seen]
        sources = [vqa_gen.source_text(*pair, config, self.vocab.bpe) for pair in zip(asked, seen, strict=True)]
        examples = [Example(None, source, "", prompt_type=prompt_type) for source in sources]
        if not free:
            answers = [ranked[0] for ranked in self._rank(examples, rows, sets, 1)]
        elif prompt_type == "src":
            raise UserError("prompt_type='src' leaves nothing to generate: pass candidates=[...], or load with 'none'.")
        else:
            answers = self._write(examples, rows, self.description.decoding("vqa_gen", decoding))
        return answers[0] if one else answers

    def ground(
        self, images: ImageLike | Sequence[ImageLike], phrases: str | Sequence[str], n_best: int = 1, **decoding: Any
    ) -> Box | list[Box] | list[list[Box]]:
        """The box that each phrase describes; with `n_best` above 1 a list of so many, best first.

        Raises UserError when the model has no location tokens.
        """
        n_best = check_count("n_best", n_best)
        if not self.vocab.num_bins:
            raise UserError(f"{self.description.source} has no location tokens: load a model trained for grounding.")
        rows_config = self.description.config(refcoco.RefcocoData, "refcoco")
        config = self.description.decoding("refcoco", decoding)
        config = box_options(replace(config, beam=max(config.beam, n_best)), self.vocab)
        (rows, texts), one = columns(images=images, phrases=phrases)
        examples = [Example(None, refcoco.source_text(text, rows_config, self.vocab.bpe), "") for text in texts]

        def find(batch: Batch, opened: Sequence[PreparedImage | None]) -> list[list[Box]]:
            searched = require_hypotheses(generate(self.model, self._inputs(batch), config))
            return [
                self._boxes(hypotheses[:n_best], image, rows_config)
                for hypotheses, image in zip(searched, opened, strict=True)
            ]

        boxes = self._run(examples, rows, find)
        results: Any = [best[0] for best in boxes] if n_best == 1 else boxes
        return results[0] if one else results

    def entail(
        self,
        images: ImageLike | Sequence[ImageLike],
        hypotheses: str | Sequence[str],
        premises: str | Sequence[str] | None = None,
    ) -> Prediction | list[Prediction]:
        """Whether each image, with its premise if there is one, proves a sentence: yes, no or maybe."""
        config = self.description.config(snli_ve.SnliVeData, "snli_ve")
        (rows, texts, captions), one = columns(("premises",), images=images, hypotheses=hypotheses, premises=premises)
        prompt_type = check_prompt_type(config.prompt_type)
        sources = [snli_ve.source_text(*pair, config, self.vocab.bpe) for pair in zip(texts, captions, strict=True)]
        examples = [Example(None, source, "", prompt_type=prompt_type) for source in sources]
        names = choices("The answers", self.description.listed("snli_ve") or read_answers(config))
        answers = [ranked[0] for ranked in self._rank(examples, rows, [names] * len(rows), 1)]
        return answers[0] if one else answers

    def classify(
        self, images: ImageLike | Sequence[ImageLike], names: Sequence[str] | None = None, top_k: int = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """The `top_k` best class names of each image, best first.

        Args:
            names: the classes; None = those the checkpoint was trained with.

        Raises UserError when there are no names.
        """
        if names is None:
            config = self.description.config(ImageClassifyData, "image_classify")
            names = self.description.answers(config, "image_classify", "names")
            if not names:
                raise UserError(f"{self.description.source} has no list of classes: pass names=[...].")
        sets, top_k = choices("names", names), check_count("top_k", top_k)
        (rows,), one = columns(images=images)
        examples = [Example(None, prompt("image_classify", "gpt2"), "")] * len(rows)  # English whatever the encoding
        ranked = self._rank(examples, rows, [sets] * len(rows), top_k)
        return ranked[0] if one else ranked

    def summarise(self, texts: str | Sequence[str], **decoding: Any) -> Prediction | list[Prediction]:
        """A headline for each text, in the tokenization of Gigaword's references."""
        config = self.description.config(gigaword.GigawordData, "gigaword")
        (articles,), one = columns(texts=texts)
        examples = [
            Example(None, gigaword.source_text(text, config, self.vocab.bpe), "", max_source_tokens=limit)
            for text, limit in zip(articles, [config.max_src_length] * len(articles), strict=True)
        ]
        searched = self.description.decoding("gigaword", decoding)
        summaries = self._write(examples, [None] * len(examples), searched, summary_text)
        return summaries[0] if one else summaries

    def generate(
        self, images: ImageLike | Sequence[ImageLike | None] | None, prompts: str | Sequence[str], **decoding: Any
    ) -> Prediction | list[Prediction]:
        """What the model writes after any instruction, with or without an image.

        `<bin_N>` and `<code_N>` in a prompt are location and image tokens; they are spelled so in what comes back.
        """
        (rows, texts), one = columns(("images",), images=images, prompts=prompts)
        examples = [Example(None, self._instruction(text), "") for text in texts]
        written = self._write(examples, rows, self.description.decoding("", decoding))
        return written[0] if one else written

    def draw(
        self,
        prompts: str | Sequence[str],
        n: int = 1,
        vqgan: tuple[PathLike, PathLike] | None = None,
        **decoding: Any,
    ) -> Image.Image | list[Image.Image] | list[list[Image.Image]]:
        """An image for each caption, or a list of `n`; `info["score"]` of an image is its score as of a free text.

        Samples are drawn with torch's random numbers: `torch.manual_seed` makes them repeat.

        Args:
            vqgan: checkpoint and yaml of the VQGAN; None = those given to `load`.

        Raises UserError without a VQGAN and for a model without image codes.
        """
        n = check_count("n", n)
        files = self.vqgan if vqgan is None else check_vqgan(vqgan)
        if not self.vocab.num_codes:
            raise UserError(f"{self.description.source} has no image codes: load a text-to-image model.")
        if files is None:
            raise UserError("Drawing needs a VQGAN: pass vqgan=(checkpoint, yaml), e.g. its last.ckpt and model.yaml.")
        (texts,), one = columns(prompts=prompts)
        painter = self.painter(*files)
        rows_config = self.description.config(ImageGenData, "image_gen")
        count = code_count(self.model.config.code_image_size)
        fixed = code_options(self.vocab.code_start, self.vocab.num_codes, count, rows_config.constraint_range)
        config = self.description.decoding("image_gen", {**decoding, **fixed, "beam": n})
        captions = [drawn_text(text, rows_config.max_src_length) for text in texts]
        template = prompt("image_gen", self.vocab.bpe)
        examples = [Example(None, template.format(caption=caption), "") for caption in captions]
        seed = int(torch.randint(2**62, ()))

        def paint(batch: Batch, _: Sequence[PreparedImage | None]) -> list[list[Image.Image]]:
            generators = row_generators(seed, batch["rows"], self.device)
            samples = sample_codes([self.model], self._inputs(batch), config, generators=generators)
            return [self._images(hypotheses, painter) for hypotheses in samples]

        drawn = self._run(examples, [None] * len(examples), paint, max(1, self.batch_size // n))
        results: Any = [images[0] for images in drawn] if n == 1 else drawn
        return results[0] if one else results

    def _rank(
        self, examples: Sequence[Example], images: Sequence[ImageLike | None], sets: Sequence[Choices], top_k: int
    ) -> list[list[Prediction]]:
        """The best candidates of each example, exactly; examples with the same ones are ranked together."""
        results: dict[int, list[Prediction]] = {}
        for candidates in dict.fromkeys(sets):
            rows = [i for i, other in enumerate(sets) if other == candidates]
            ranked = self._rank_among(candidates.names, [examples[i] for i in rows], [images[i] for i in rows], top_k)
            results.update(zip(rows, ranked, strict=True))
        return [results[i] for i in range(len(examples))]

    def _rank_among(
        self, names: tuple[str, ...], examples: Sequence[Example], images: Sequence[ImageLike | None], top_k: int
    ) -> list[list[Prediction]]:
        trie = self._trie(names)

        def choose(batch: Batch, _: Sequence[PreparedImage | None]) -> list[list[Prediction]]:
            enc = self.model.encode(**self._inputs(batch))
            ranking = rank_candidates(self.model, enc, trie, batch.get("decoder_prompts"), top_k)
            return [[Prediction(*pair) for pair in best] for best in ranked_names(ranking, names)]

        return self._run(examples, images, choose)

    def _write(
        self,
        examples: Sequence[Example],
        images: Sequence[ImageLike | None],
        config: GenerationConfig,
        answer: Callable[[Hypothesis, Vocabulary], str] | None = None,
    ) -> list[Prediction]:
        """The task's `answer` of the best text of each example; None = the text, without what the decoder was fed."""

        def write(batch: Batch, _: Sequence[PreparedImage | None]) -> list[Prediction]:
            prompts = batch.get("decoder_prompts")
            prefix = None if prompts is None else prefix_tokens(prompts, self.vocab.pad)
            searched = require_hypotheses(generate(self.model, self._inputs(batch), config, prefix_tokens=prefix))
            prompt_lengths = [0] * len(searched) if prompts is None else [len(prompt) - 1 for prompt in prompts]
            best = [(hypotheses[0], start) for hypotheses, start in zip(searched, prompt_lengths, strict=True)]
            texts = [answer(h, self.vocab) if answer else free_text(h, self.vocab, start) for h, start in best]
            return [Prediction(text, _score(*pair)) for text, pair in zip(texts, best, strict=True)]

        return self._run(examples, images, write)

    def _run(
        self,
        examples: Sequence[Example],
        images: Sequence[ImageLike | None],
        answer: Callable[[Batch, Sequence[PreparedImage | None]], list[R]],
        batch_size: int | None = None,
    ) -> list[R]:
        """What `answer` says of batches of samples and their images, in the order of the examples."""
        results: dict[int, R] = {}
        with torch.inference_mode():
            for rows in _plan(examples, images, batch_size or self.batch_size):
                opened = self._opened([images[i] for i in rows])
                try:
                    pixels = [None if image is None else image.pixels for image in opened]
                    samples = [
                        encode_example(i, replace(examples[i], image=whole), self.vocab, self.transform)
                        for i, whole in zip(rows, pixels, strict=True)
                    ]
                    batch = collate(samples, self.vocab.pad, share_images=True)
                    results.update(zip(rows, answer(batch, opened), strict=True))
                except UserError:
                    raise
                except ValueError as error:  # a text longer than the model has positions for
                    raise ItemError(str(error)) from error
        return [results[i] for i in range(len(examples))]

    def _opened(self, images: Sequence[ImageLike | None]) -> list[PreparedImage | None]:
        """The images, each read once; the model sees an image once too, however many rows ask about it."""
        opened: dict[Any, PreparedImage | None] = {}
        keys = [image if isinstance(image, str | os.PathLike | bytes) else id(image) for image in images]
        for key, image in zip(keys, images, strict=True):
            if key not in opened:
                opened[key] = None if image is None else self.prepare(image)
        return [opened[key] for key in keys]

    def prepare(self, image: ImageLike) -> PreparedImage:
        """The image as the model takes it, resized and normalized: what can be done ahead, in other threads.

        Raises UserError as of `models.predictor.read_image`.
        """
        if isinstance(image, PreparedImage):
            return image
        whole = self.read_image(image)
        return PreparedImage(whole.size, self.transform(whole))

    def read_image(self, image: ImageFile) -> Image.Image:
        """The image as the model sees it before it is resized; see `models.predictor.read_image`."""
        return read_image(image, self.shared.max_image_pixels)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """What the encoder takes of a batch, on the model's device and in its precision."""
        net_input: Mapping[str, Any] = batch["net_input"]
        tensors: dict[str, Tensor] = {
            name: net_input[name].to(self.device) for name in ENCODER_INPUTS if name in net_input
        }
        return {name: x.to(self.dtype) if x.is_floating_point() else x for name, x in tensors.items()}

    def _instruction(self, text: str) -> list[int]:
        """Ids of an instruction: after a blank, as all prompts, and with symbols looked up."""
        pieces = SYMBOL.split(text if text.startswith(" ") else f" {text}")
        ids = []
        for piece in pieces:
            number = self.vocab.index(piece.strip())
            ids += [number] if SYMBOL.fullmatch(piece) and number != self.vocab.unk else self.vocab.encode(piece)
        return ids

    def _boxes(
        self, hypotheses: Sequence[Hypothesis], image: PreparedImage | None, config: refcoco.RefcocoData
    ) -> list[Box]:
        assert image is not None
        ratios = refcoco.resize_ratios(*image.size, config)
        boxes = refcoco.predicted_boxes([h.tokens for h in hypotheses], ratios, self.vocab, config).tolist()
        return [Box(x0, y0, x1, y1, _score(h)) for (x0, y0, x1, y1), h in zip(boxes, hypotheses, strict=True)]

    def _images(self, hypotheses: Sequence[Hypothesis], painter: Painter) -> list[Image.Image]:
        images = painter.draw([hypothesis.tokens for hypothesis in hypotheses])
        for image, hypothesis in zip(images, hypotheses, strict=True):
            image.info["score"] = _score(hypothesis)
        return images

    def _make_trie(self, names: tuple[str, ...]) -> CandidateTrie:
        return CandidateTrie.from_texts(names, self.vocab.encode)

    def _make_painter(self, checkpoint: str, config: str) -> Painter:
        return Painter.load(checkpoint, config, None, self.vocab.code_start, self.vocab.num_codes, self.device)


def _dtype(name: str | torch.dtype) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    dtype = known.get(str(name).removeprefix("torch."))
    if dtype is None:
        advice = " (int8 is an option of its own)" if "int8" in str(name) else ""
        raise UserError(f"dtype={name!r} is unknown: choose {', '.join(known)}{advice}.")
    return dtype


def _score(hypothesis: Hypothesis, prompt_length: int = 0) -> float:
    return math.exp(min(hypothesis.mean_log_prob(prompt_length), 0.0))  # above 0 with a negative --unkpen


def _plan(examples: Sequence[Example], images: Sequence[ImageLike | None], size: int) -> Iterator[list[int]]:
    """Numbers of the rows in each batch: those with and without an image apart, texts of like length together."""
    for blind in (False, True):
        rows = [i for i, image in enumerate(images) if (image is None) == blind]
        rows.sort(key=lambda i: len(examples[i].source))
        yield from (rows[start : start + size] for start in range(0, len(rows), size))
