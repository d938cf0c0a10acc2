"""Models without random weights, for those that are loaded next."""

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class UnsetWeights(TorchFunctionMode):
    """Models that are built inside hold whatever was in memory where they would hold random numbers.

    Drawing the weights of a large model takes longer than reading them from its file.
    """

    _DRAWN = frozenset({
        Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_,
        nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.xavier_uniform_,
    })  # fmt: skip

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return (args[0] if args else kwargs["tensor"]) if func in self._DRAWN else func(*args, **kwargs)
