"""Prompts to images: codes sampled by OFA, drawn by the VQGAN, chosen by CLIP.

Shapes: B prompts, n codes of an image.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.clip import CLIP
from models.generation import GenerationConfig, Hypothesis, generate, require_hypotheses
from models.ofa import OFA
from models.vqgan import VQGAN, to_pil
from utils.errors import UserError

# Flag of each file -> what it is.
FILES = {
    "--vqgan-model-path": "the VQGAN's last.ckpt",
    "--vqgan-config-path": "the VQGAN's model.yaml",
    "--clip-model-path": "OpenAI's ViT-B-16.pt",
}


class ScoredImage(NamedTuple):
    """One sample of a prompt."""

    image: Image.Image
    score: float | None  # CLIP's cosine with what was asked for; None without CLIP
    hypothesis: Hypothesis


def check_files(paths: Mapping[str, str | None]) -> None:
    """Raises UserError unless each flag's file is there; flags are those of `FILES`."""
    for flag, path in paths.items():
        if not path:
            raise UserError(f"{flag} is missing: name the file of {FILES[flag]}.")
        if not Path(path).is_file():
            raise UserError(f"There is no {path}: put {FILES[flag]} there, or name it with {flag}.")


def code_options(first: int, codes: int, count: int, constraint_range: str | None = None) -> dict[str, Any]:
    """What `GenerationConfig` must say for an image to come out, whatever else is chosen.

    Args:
        first: id of code 0. codes: size of the code dictionary. count: codes of an image.
        constraint_range: "start,end", narrower than all codes.

    Raises:
        UserError: the range has ids that are no codes.
    """
    everything = f"{first},{first + codes}"
    options: dict[str, Any] = dict(
        sampling=True, gen_code=True, max_len_a=0.0, max_len_b=count, min_len=count,
        constraint_range=constraint_range or everything,
    )  # fmt: skip
    start, end = GenerationConfig(**options).token_range or (0, 0)
    if start < first or end > first + codes:
        raise UserError(f"--constraint-range {constraint_range} has ids that are not image codes: choose {everything}.")
    return options


def row_generators(seed: int, rows: Iterable[int], device: torch.device) -> list[torch.Generator]:
    """A source of random numbers for each row of a file: draws depend on seed and row, not on batch or process."""
    seeds = [int(np.random.SeedSequence((seed, int(row))).generate_state(1, np.uint64)[0]) for row in rows]
    return [torch.Generator(device).manual_seed(row_seed) for row_seed in seeds]


def sample_codes(
    models: Sequence[OFA],
    inputs: Mapping[str, Any],
    config: GenerationConfig,
    times: int = 1,
    generators: Sequence[torch.Generator] | None = None,
) -> list[list[Hypothesis]]:
    """The samples of each prompt: `times` rounds of `config.beam`, most likely first within a round.

    Args:
        models, inputs, generators: as of `generate`. config: with `code_options`.

    Raises:
        UserError: a model whose outputs are not numbers.
    """
    rounds = [generate(models, inputs, config, generators=generators) for _ in range(times)]
    return require_hypotheses([list(chain.from_iterable(samples)) for samples in zip(*rounds, strict=True)])


class Painter:
    """Codes to images, and the choice among them.

    Args:
        first_code: id of code 0. clip: None = the first sample of a prompt is its image.
        batch_size: images drawn at once.
    """

    def __init__(self, vqgan: VQGAN, clip: CLIP | None, first_code: int, batch_size: int = 16) -> None:
        self.vqgan, self.clip, self.first_code, self.batch_size = vqgan, clip, first_code, batch_size

    @classmethod
    def load(
        cls,
        vqgan_model_path: str | None,
        vqgan_config_path: str | None,
        clip_model_path: str | None,
        first_code: int,
        codes: int,
        device: str | torch.device = "cpu",
    ) -> "Painter":
        """Reads the files; without `clip_model_path` there is no CLIP.

        Args:
            first_code: id of code 0. codes: size of the code dictionary.

        Raises:
            UserError: a file is missing or of another kind, or the VQGAN has too few codes.
        """
        paths = {"--vqgan-model-path": vqgan_model_path, "--vqgan-config-path": vqgan_config_path}
        check_files({**paths, "--clip-model-path": clip_model_path} if clip_model_path else paths)
        vqgan = VQGAN.load(str(vqgan_model_path), str(vqgan_config_path), device)
        if vqgan.config.n_embed < codes:
            raise UserError(f"{vqgan_model_path} has {vqgan.config.n_embed} codes: pass --code-dict-size of that many.")
        return cls(vqgan, CLIP.load(clip_model_path, device) if clip_model_path else None, first_code)

    def draw(self, sequences: Sequence[Tensor]) -> list[Image.Image]:
        """Images of token sequences (n + 1,): codes and end of sentence."""
        codes = torch.stack([tokens[:-1] for tokens in sequences]) - self.first_code  # (N, n)
        device = self.vqgan.quantize.embed.weight.device
        return [image for part in codes.to(device).split(self.batch_size) for image in to_pil(self.vqgan.decode(part))]

    def choose(
        self, samples: Sequence[Sequence[Hypothesis]], targets: Sequence[str | Image.Image]
    ) -> list[list[ScoredImage]]:
        """Draws all samples of B prompts; each prompt's by descending similarity to its target, if there is CLIP.

        targets: B texts, or B images to resemble.
        """
        images = self.draw([sample.tokens for hypotheses in samples for sample in hypotheses])
        chosen, first = [], 0
        for hypotheses, target in zip(samples, targets, strict=True):
            drawn = images[first : first + len(hypotheses)]
            first += len(hypotheses)
            order: Iterable[tuple[int, float | None]] = ((number, None) for number in range(len(hypotheses)))
            if self.clip is not None:
                ranking = self.clip.rerank(drawn, target)
                order = zip(ranking.indices.tolist(), ranking.scores.tolist(), strict=True)
            chosen.append([ScoredImage(drawn[number], score, hypotheses[number]) for number, score in order])
        return chosen
