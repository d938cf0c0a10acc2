"""`scst_reward_criterion`: self-critical training on CIDEr-D, and what every such criterion shares."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Optional

import torch
from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor, nn

from criterions.base import COUNTS, OFACriterion
from criterions.linear_cross_entropy import linear_cross_entropy
from criterions.losses import check_loss_options
from criterions.reward import pack_rewards, pack_samples
from metrics.cider import CiderD, reward_text
from models.generation import GenerationConfig, generate
from tasks.base import encoder_inputs, unwrap
from utils.errors import UserError


@dataclass
class SelfCriticalConfig(FairseqDataclass):
    """Options of every self-critical criterion; --scst-args says how it samples."""

    ignore_prefix_size: int = field(default=0, metadata={"help": "leave out the first N tokens of a sample"})
    sentence_avg: bool = II("optimization.sentence_avg")
    constraint_range: Optional[str] = field(
        default=None, metadata={"help": '"start,end": only ids start to end - 1 and the special ids are possible'}
    )


class SelfCriticalCriterion(OFACriterion):
    """Raises the probability of samples that score better than the others of their input, lowers the rest.

    The loss of a sample is its negative log-likelihood times its reward, the score minus the mean score of the
    others. Subclasses give the score. An input is encoded once to sample and once to learn; all its samples are
    decoded against that one encoder output.

    Attributes:
        score_name: what the log calls the mean score.
    """

    score_name = "score"

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(task, cfg.sentence_avg)
        self.cfg = cfg
        config = getattr(task, "scst_config", None)
        if config is None:
            raise UserError(
                f"--criterion={cfg._name} needs --scst, and a task whose samples it can score, such as --task=caption."
            )
        self.sampling: GenerationConfig = config
        try:
            check_loss_options(ignore_prefix_size=cfg.ignore_prefix_size, constraint_range=cfg.constraint_range)
        except ValueError as error:
            raise UserError(str(error)) from error

    @abstractmethod
    def scores(self, sample: Mapping[str, Any], hypotheses: Sequence[Sequence[Tensor]]) -> Tensor:
        """Score of every hypothesis (N,), those of the first input first.

        hypotheses: per input of the batch, token ids (t,) without bos and with eos.
        """

    def compute(self, model: nn.Module, sample: Mapping[str, Any], update_num: int) -> tuple[Tensor, dict[str, Any]]:
        """Samples, scores, and the loss of the samples of one batch."""
        hypotheses = self.hypotheses(model, sample)
        counts = [len(own) for own in hypotheses]
        scores = self.scores(sample, hypotheses)
        rewards = pack_rewards(scores, counts)
        previous, target = pack_samples(hypotheses, self.task.target_dictionary.bos(), self.padding_idx)
        loss = partial(
            linear_cross_entropy,
            target=target,
            pad=self.padding_idx,
            eos=self.eos_idx,
            epsilon=0.0,
            constraint_range=self.cfg.constraint_range,
            conf=rewards.to(target.device, torch.float32),
            ignore_prefix_size=self.cfg.ignore_prefix_size,
        )
        sums = model(**{**sample["net_input"], "prev_output_tokens": previous}, head=loss)[0]
        return sums.loss, {
            "score": float(scores.sum()),
            "squared_reward": float(rewards.square().sum()),
            "ntokens": int(target.ne(self.padding_idx).sum()),
            "nsentences": sum(counts),
            "counted": sums.ntokens,
        }

    def hypotheses(self, model: nn.Module, sample: Mapping[str, Any]) -> list[list[Tensor]]:
        """Token ids of all hypotheses of each input, best first, by the model in evaluation mode."""
        unwrapped: Any = unwrap(model)
        training = model.training
        unwrapped.eval()
        searched = generate(unwrapped, encoder_inputs(sample), self.sampling)
        if training:
            unwrapped.train()
        return [[hypothesis.tokens for hypothesis in beam] for beam in searched]

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[Mapping[str, Any]]) -> None:
        """Sums of all processes -> displayed metrics.

        `loss` per token (or sample, with --sentence-avg), `score` the mean of all samples, `reward_std` the spread of
        the rewards (their mean is 0), `length` tokens per sample, end of sentence included.
        """
        keys = ("loss", "score", "squared_reward", *COUNTS)
        total = {key: sum(float(output.get(key, 0)) for output in logging_outputs) for key in keys}
        size, samples = total["sample_size"], max(total["nsentences"], 1)
        metrics.log_scalar("loss", total["loss"] / max(size, 1), size, round=3)
        metrics.log_scalar(cls.score_name, total["score"] / samples, samples, round=3)
        metrics.log_scalar("reward_std", math.sqrt(total["squared_reward"] / samples), samples, round=3)
        metrics.log_scalar("length", total["ntokens"] / samples, samples, round=2)
        for key in COUNTS:
            metrics.log_scalar(key, total[key], 1, round=3)


@dataclass
class ScstRewardConfig(SelfCriticalConfig):
    """Options of self-critical captioning."""

    scst_cider_cached_tokens: str = field(
        default="coco-train-words.p",
        metadata={"help": "document frequencies for CIDEr-D (pickle); empty: counted in the training file"},
    )


@register_criterion("scst_reward_criterion", dataclass=ScstRewardConfig)
class ScstRewardCriterion(SelfCriticalCriterion):
    """Rewards captions by CIDEr-D against all captions of their image."""

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(cfg, task)
        if cfg.scst_cider_cached_tokens:
            self.cider = CiderD.from_pickle(cfg.scst_cider_cached_tokens)
        else:
            self.cider = CiderD.from_references(map(reward_text, captions) for captions in task.training_references())

    def scores(self, sample: Mapping[str, Any], hypotheses: Sequence[Sequence[Tensor]]) -> Tensor:
        """CIDEr-D (N,), float64; 10 is an identical caption."""
        captions, references = [], []
        for beam, texts in zip(hypotheses, sample["references"], strict=True):
            captions += [reward_text(self.task.target_dictionary.written(tokens)) for tokens in beam]
            references += [[reward_text(text) for text in texts]] * len(beam)
        return torch.from_numpy(self.cider.score(captions, references)[1])
