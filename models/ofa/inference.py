"""The one place that turns a loaded model into one that answers: `prepare_for_inference`."""

import torch
from torch import nn

from models.ofa.folding import fold_batch_norms
from models.ofa.int8 import quantize_layers
from models.ofa.model import OFA
from models.ofa.resnet import ResNet


def prepare_for_inference(model: OFA, dtype: torch.dtype = torch.float32, int8: bool = False) -> OFA:
    """Makes a model that `load_model` returned faster, in place; it can only answer from now on.

    Batch norms of its image trunk are folded into the convolutions, from weights of full precision; its `state_dict`
    keeps the names and values of before, and with int8 weights it has none.

    Args:
        model: float32, in eval mode, on its device. dtype: of weights and features from now on; norms, softmax and
            log-probabilities are computed in float32 all the same. int8: `quantize_layers`.
    """
    trunk: nn.Module = model.encoder.embed_images
    if isinstance(trunk, ResNet):
        fold_batch_norms(trunk)
    if int8:
        quantize_layers(model)
    return model.to(dtype).requires_grad_(False)
