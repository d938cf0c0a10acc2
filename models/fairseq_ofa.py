"""Registers the model with fairseq as `ofa_tiny` ... `ofa_huge`, every option of `OFAConfig` a flag."""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from fairseq.tasks import FairseqTask
from torch import Tensor

from models.ofa import OFA, OFAConfig
from models.ofa.config import ARCHITECTURES
from models.weights import upgrade_state_dict
from models.weights.upgrade import TRUNK, LoadReport, summarise
from utils.errors import UserError

logger = logging.getLogger(__name__)


@dataclass
class OFAFlags(OFAConfig, FairseqDataclass):
    """`OFAConfig` as command line flags; what the user leaves out the named size fills in."""

    def __post_init__(self) -> None:
        """Nothing to check yet: fairseq makes an instance before it knows the flags."""


@register_model("ofa", dataclass=OFAFlags)
class FairseqOFA(OFA, BaseFairseqModel):
    """`OFA` behind fairseq's model interface; parameter names stay those of the released checkpoints."""

    @classmethod
    def build_model(cls, cfg: Any, task: FairseqTask) -> "FairseqOFA":
        """The model that flags and task ask for; the vocabulary comes from the task's dictionary."""
        options = {f.name: getattr(cfg, f.name) for f in fields(OFAConfig)}
        try:
            return cls(OFAConfig(**{**options, "vocab_size": len(task.target_dictionary)}))
        except ValueError as error:
            raise UserError(str(error)) from error

    def forward(  # type: ignore[override]
        self,
        src_tokens: Tensor,
        prev_output_tokens: Tensor,
        head: Callable[[Tensor, Tensor], Any] | None = None,
        **inputs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Logits (B, T, V) and an empty dictionary; fairseq's batches also carry src_lengths, which is not used.

        head: takes the place of the output layer, for losses that never hold all logits. It is called with the
            decoder's features (B, T, C) and the output weight (V, C) in here, where wrappers (DDP, sharding) have
            gathered the weight, and its value is returned instead of logits.
        """
        inputs.pop("src_lengths", None)
        if head is None:
            return super().forward(src_tokens, prev_output_tokens, **inputs), {}
        code_masks = inputs.pop("code_masks", None)
        features = self.decoder(prev_output_tokens, self.encode(src_tokens, **inputs), code_masks)
        return head(features, self.decoder.output_projection.weight), {}

    def max_positions(self) -> tuple[int, int]:
        """Longest source and target, in tokens."""
        return self.config.max_source_positions, self.config.max_target_positions

    def load_state_dict(self, state_dict: Any, strict: bool = True, model_cfg: Any = None, args: Any = None) -> Any:
        """Loads a checkpoint's weights after the upgrade rules; fairseq passes its configuration, which is not needed.

        Raises UserError when the file holds another model.
        """
        state = dict(state_dict)
        report = upgrade_state_dict(state, self)
        logger.info(str(report))
        self._tell_origin(report)
        return OFA.load_state_dict(self, state, strict)

    def _tell_origin(self, report: LoadReport) -> None:
        """Logs which parameters a file without all of them has given, and warns of an image trunk that stays random."""
        names = [name for name, _ in self.named_parameters()]
        missing = set(report.missing)
        taken = [name for name in names if name not in missing]
        if len(taken) < len(names):
            groups = ", ".join(summarise(taken))
            logger.info("%d of %d parameters are the checkpoint's: %s", len(taken), len(names), groups)
        if TRUNK in report.missing and self.config.resnet_model_path is None:
            logger.warning("The image trunk starts from random weights: --resnet-model-path names a ResNet's.")


def _register(arch: str) -> None:
    @register_model_architecture("ofa", arch)
    def fill(args: argparse.Namespace) -> None:
        """Gives every option the command line left out the size's value."""
        for option in fields(OFAConfig):
            if not hasattr(args, option.name):
                setattr(args, option.name, ARCHITECTURES[arch].get(option.name, option.default))


for _arch in ARCHITECTURES:
    _register(_arch)
