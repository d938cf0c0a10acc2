"""Text-to-image generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import register_task

from data.builders.image_codes import image_name
from data.image_gen import COLUMNS, ImageGenData, ImageGenDataset, code_count
from data.row_index import Rows
from data.tasks import TASKS
from metrics.sums import Metric
from models.generation import GenerationConfig
from models.ofa import OFA
from models.text_to_image import Painter, ScoredImage, check_files, code_options, row_generators, sample_codes
from tasks.base import Evaluation, OFATask, encoder_inputs, generation_confidence
from utils.errors import BadRowError, UserError, one_sentence
from utils.files import atomic_write, check_folder
from utils.predictions import Record

METHODS = ("ti_sim", "ii_sim")


@dataclass
class ImageGenConfig(ImageGenData, FairseqDataclass):
    """Options of text-to-image generation."""

    sampling_times: int = field(default=1, metadata={"help": "rounds of sampling per prompt, --beam samples each"})
    eval_clip_method: str = field(
        default="ti_sim", metadata={"help": "CLIP compares images with the prompt (ti_sim) or the true one (ii_sim)"}
    )
    eval_args: Optional[str] = field(
        default="{}", metadata={"help": 'sampling options of validation as JSON, e.g. {"beam":24,"sampling_topk":256}'}
    )
    scst: bool = field(default=False, metadata={"help": "self-critical training: sample with --scst-args"})
    scst_args: str = field(default="{}", metadata={"help": "sampling options of self-critical training as JSON"})
    vqgan_model_path: Optional[str] = field(default=None, metadata={"help": "the VQGAN's last.ckpt, to draw images"})
    vqgan_config_path: Optional[str] = field(default=None, metadata={"help": "the VQGAN's model.yaml"})
    clip_model_path: Optional[str] = field(
        default=None,
        metadata={"help": "OpenAI's ViT-B-16.pt, to score images and choose the best (default: take the first sample)"},
    )
    gen_images_path: str = field(
        default="", metadata={"help": "folder for the images of validation and evaluation (default: keep none)"}
    )


@register_task("image_gen", dataclass=ImageGenConfig)
class ImageGenTask(OFATask):
    """Samples codes for a prompt, draws them, and takes the image that CLIP likes best.

    The VQGAN and CLIP are loaded when the first images are drawn.
    """

    row = TASKS["image_gen"]
    metrics = {"score": Metric(3)}
    _painter: Painter | None = None

    def __init__(self, cfg: Any, vocab: Any) -> None:
        super().__init__(cfg, vocab)
        self.results_path = cfg.gen_images_path or None  # predictions are the index of the images
        if cfg.eval_clip_method not in METHODS:
            raise UserError(f"--eval-clip-method {cfg.eval_clip_method}: choose {' or '.join(METHODS)}.")
        if cfg.sampling_times < 1:
            raise UserError(f"--sampling-times must be a positive integer, not {cfg.sampling_times}.")

    def build_dataset(self, rows: Rows, split: str, epoch: int) -> ImageGenDataset:
        """Rows of prompts and codes; UserError for prompts alone in training, which have nothing to learn."""
        dataset = ImageGenDataset(rows, self.vocab, self.cfg, split, epoch=epoch)
        if split == "train" and not self.cfg.scst and "codes" not in dataset.columns:
            raise UserError(f"{rows.path}: training needs image codes, select the columns {', '.join(COLUMNS[1])}.")
        if split != "train" and self.cfg.gen_images_path:
            check_folder(Path(self.cfg.gen_images_path), "--gen-images-path")
            _check_ids(dataset)
        return dataset

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """As the base; what the first validation would stop at is said before training."""
        if self.validation_config is not None:
            self.check_files(clip=bool(self.cfg.clip_model_path))
        return super().build_criterion(cfg, from_checkpoint)

    def check_files(self, clip: bool) -> None:
        """Raises UserError unless the VQGAN's files, and CLIP's with `clip`, are there."""
        names = ["vqgan_model_path", "vqgan_config_path", *(["clip_model_path"] if clip else [])]
        check_files({f"--{name.replace('_', '-')}": self.cfg[name] for name in names})

    @property
    def generation_options(self) -> dict[str, Any]:
        """An image's codes, all of them and no others, are sampled."""
        count = code_count(self.cfg.code_image_size)
        return code_options(self.vocab.code_start, self.vocab.num_codes, count, self.cfg.constraint_range)

    @cached_property
    def validation_config(self) -> GenerationConfig | None:
        """Options of --eval-args, if there is CLIP to score images or a folder to keep them."""
        if not (self.cfg.clip_model_path or self.cfg.gen_images_path):
            return None
        return GenerationConfig.from_json(self.cfg.eval_args, "--eval-args", **self.generation_options)

    @cached_property
    def scst_config(self) -> GenerationConfig | None:
        """How self-critical training samples: the options of --scst-args with --scst."""
        if not self.cfg.scst:
            return None
        return GenerationConfig.from_json(self.cfg.scst_args, "--scst-args", **self.generation_options)

    def painter(self, device: torch.device) -> Painter:
        """The VQGAN and, with --clip-model-path, CLIP; read at the first call."""
        if self._painter is None:
            self._painter = Painter.load(
                self.cfg.vqgan_model_path,
                self.cfg.vqgan_config_path,
                self.cfg.clip_model_path,
                self.vocab.code_start,
                self.vocab.num_codes,
                device,
            )
        return self._painter

    def evaluate(self, models: Sequence[OFA], batch: Mapping[str, Any], config: GenerationConfig) -> Evaluation:
        """The best image of each prompt; what is drawn for a row depends on the run's seed and the row only."""
        captions, device = batch["captions"], batch["net_input"]["src_tokens"].device
        if (size := models[0].config.code_image_size) != self.cfg.code_image_size:
            raise UserError(f"The model draws images of {size} pixels: pass --code-image-size={size}.")
        targets: list[Any] = [caption.replace("/", "") for caption in captions]  # as the original scores them
        if self.cfg.eval_clip_method == "ii_sim" and self.cfg.clip_model_path:
            if "code_images" not in batch:
                raise UserError(f"--eval-clip-method ii_sim compares images: select {', '.join(COLUMNS[2])}.")
            targets = batch["code_images"]
        painter = self.painter(device)
        generators = row_generators(torch.initial_seed(), batch["rows"], device)
        samples = sample_codes(models, encoder_inputs(batch), config, self.cfg.sampling_times, generators)
        images = painter.choose(samples, targets)
        best = [own[0] for own in images]
        records: list[Record] = [
            {"sample_id": str(name), "caption": caption, "score": own[0].score, "image": self._keep(str(name), own)}
            for name, caption, own in zip(batch["id"], captions, images, strict=True)
        ]
        scores = [image.score for image in best if image.score is not None]
        sums: dict[str, tuple[float, ...]] = {"score": (sum(scores), len(scores))} if painter.clip else {}
        confidences = [generation_confidence(image.hypothesis) for image in best]
        return Evaluation(records, sums=sums, confidences=confidences)

    def _keep(self, name: str, images: Sequence[ScoredImage]) -> str | None:
        """Writes the images of a prompt, best first, below --gen-images-path; the best one's path in there."""
        if not self.cfg.gen_images_path:
            return None
        folder, best = Path(self.cfg.gen_images_path), f"top1/{image_name(name)}"
        files = {best: images[0], **{_ranked(name, rank): image for rank, image in enumerate(images)}}
        try:
            for file, image in files.items():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(folder / file) as out:
                    image.image.save(out, format="PNG")
        except OSError as error:
            raise UserError(f"Cannot write images to --gen-images-path: {one_sentence(error)}") from error
        return best


def _ranked(name: str, rank: int) -> str:
    return f"all_results/{image_name(f'{name}_{rank}')}"


def _check_ids(dataset: ImageGenDataset) -> None:
    """Raises UserError if two rows would have images of the same name."""
    seen: dict[str, int] = {}
    for row in range(len(dataset)):
        try:
            name = image_name(dataset.rows[row][0])
        except BadRowError:  # whoever reads the row for its sample says so
            continue
        if (other := seen.setdefault(name, row)) != row:
            raise UserError(
                f"{dataset.rows.path}, lines {other + 1} and {row + 1}: images are named by id, and these rows "
                "share one: give every row a unique id."
            )
