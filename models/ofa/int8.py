"""Linear layers with int8 weights, for inference: a quarter of float32's memory.

Each output channel has a scale, so that its largest weight is 127. With an x86 CPU the inputs become integers as
well, row by row, and PyTorch's integer product is several times faster for the few rows of a decoding step.
Elsewhere the weights are multiplied out when they are needed, which saves memory but no time.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.ofa.folding import InferenceOnly
from models.ofa.layers import DecoderLayer, EncoderLayer

LARGEST = 127
ENGINES = ("x86", "fbgemm", "onednn")  # those that multiply integers
SMALLEST_ROW = 1e-12  # divisor for rows of zeros


class Int8Linear(InferenceOnly):
    """Stands for a linear layer, (..., C) -> (..., C').

    Attributes:
        weight: (C', C) int8, None while `packed` holds it in the form that the CPU's product wants.
        scale: (C',) float32. bias: (C',) in the precision of features, or None.
    """

    weight: Tensor | None
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=SMALLEST_ROW) / LARGEST
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.packed: Any = None
        self.original = None
        self.training = False
        self._pack()

    @property
    def nbytes(self) -> int:
        """Memory of weights, scales and biases."""
        others = [tensor.nbytes for tensor in (self.scale, self.bias) if tensor is not None]
        return self.in_features * self.out_features + sum(others)

    def forward(self, x: Tensor) -> Tensor:
        """In the precision of x."""
        if self.packed is None:
            assert self.weight is not None
            out = F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype)[:, None])
        else:
            # The operator has one scale for all of its input: with rows of equal range each has its own.
            rows = x.float()
            size = torch.maximum(rows.amax(-1, keepdim=True), -rows.amin(-1, keepdim=True)).clamp_(min=SMALLEST_ROW)
            out = torch.ops.quantized.linear_dynamic(rows / size, self.packed, True).mul_(size).to(x.dtype)
        return out if self.bias is None else out + self.bias

    def _pack(self) -> None:
        if self.weight is None or self.weight.device.type != "cpu" or not has_integer_product():
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch announces that these tensors will go
            zeros = torch.zeros(self.out_features, dtype=torch.long)
            whole = torch._make_per_channel_quantized_tensor(self.weight, self.scale.double(), zeros, 0)
            self.packed, self.weight = torch.ops.quantized.linear_prepack(whole, None), None

    def _unpack(self) -> None:
        if self.packed is not None:
            self.weight, self.packed = torch.ops.quantized.linear_unpack(self.packed)[0].int_repr(), None

    def _apply(self, fn: Any, recurse: bool = True) -> "Int8Linear":
        self._unpack()
        scale = self.scale  # float32 whatever the precision of features
        super()._apply(fn, recurse)
        self.scale = scale.to(self.scale.device)
        self._pack()
        return self


def has_integer_product() -> bool:
    """Whether this machine's PyTorch has the CPU's integer product."""
    return torch.backends.quantized.engine in ENGINES and hasattr(torch.ops.quantized, "linear_dynamic")


def quantize_layers(model: nn.Module) -> None:
    """Gives all linear layers of the encoder's and the decoder's layers int8 weights, in place.

    The token table, which is the output layer too, the image trunk and what makes positions stay as they are. Nothing
    of the model can be saved afterward: what it was made of is gone.
    """
    for layer in [module for module in model.modules() if isinstance(module, EncoderLayer | DecoderLayer)]:
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, Int8Linear(child))
    for module in model.modules():
        if isinstance(module, InferenceOnly):
            module.original = None
