"""`clip_scst_reward_criterion`: self-critical training of text-to-image generation on CLIP's similarity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from fairseq.criterions import register_criterion
from torch import Tensor

from criterions.scst import SelfCriticalConfig, SelfCriticalCriterion
from utils.errors import UserError

WEIGHT = 2.5  # of the cosine (CLIPScore, Hessel et al. 2021, arXiv:2104.08718, without its clamp at 0)


@dataclass
class ClipScstRewardConfig(SelfCriticalConfig):
    """Options of self-critical text-to-image generation."""


@register_criterion("clip_scst_reward_criterion", dataclass=ClipScstRewardConfig)
class ClipScstRewardCriterion(SelfCriticalCriterion):
    """Rewards sampled images by their likeness to their prompt.

    The log calls the mean score `clip_reward`: `score` is the task's, that of the best image.
    """

    score_name = "clip_reward"

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(cfg, task)
        if not hasattr(task, "painter"):
            raise UserError(f"--criterion={cfg._name} needs --task=image_gen.")
        task.check_files(clip=True)

    @torch.no_grad()
    def scores(self, sample: Mapping[str, Any], hypotheses: Sequence[Sequence[Tensor]]) -> Tensor:
        """2.5 times the cosine of image and caption (N,), float32, on the CPU."""
        painter = self.task.painter(sample["net_input"]["src_tokens"].device)
        images = painter.draw(list(chain.from_iterable(hypotheses)))
        scores, first = [], 0
        for own, caption in zip(hypotheses, sample["captions"], strict=True):
            scores.append(painter.clip.similarity(images[first : first + len(own)], [caption])[:, 0])
            first += len(own)
        return WEIGHT * torch.cat(scores)
