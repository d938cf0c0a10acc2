"""The optimizer, its saved state, and the moving average of the weights."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from fairseq import optim
from fairseq.models.ema.ema import EMA
from fairseq.optim import FairseqOptimizer
from fairseq.optim import adam as stock
from omegaconf import DictConfig
from torch import Tensor, nn


class FusedAdam(torch.optim.Optimizer):
    """fairseq's Adam in one call for all parameters, which must be float32; its state is as fairseq's.

    fairseq adds epsilon to the root of the second moment before its bias is corrected, PyTorch after it. One is the
    other with epsilon / sqrt(1 - beta2^step).

    Attributes:
        factor: what the gradients of the next step are multiplied with, on the way.
    """

    factor = 1.0

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_step: defaultdict[int, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if parameter.grad.stride() != parameter.stride():  # the fused update takes one order for all
                        parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
                    by_step[self._next_step(parameter)].append(parameter)
            for step, parameters in by_step.items():
                self._update(group, step, parameters)
        self.factor = 1.0

    def _next_step(self, parameter: nn.Parameter) -> int:
        slot = self.state[parameter]
        if not slot:
            slot |= {"step": 0, **{name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}}
        slot["step"] += 1
        return int(slot["step"])

    def _update(self, group: dict[str, Any], step: int, parameters: list[Tensor]) -> None:
        device, (beta1, beta2) = parameters[0].device, group["betas"]
        torch._fused_adamw_(
            parameters, [p.grad for p in parameters if p.grad is not None],
            [self.state[p]["exp_avg"] for p in parameters], [self.state[p]["exp_avg_sq"] for p in parameters], [],
            [torch.full((), float(step), device=device)] * len(parameters),
            lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"],
            eps=group["eps"] / math.sqrt(1 - beta2**step), amsgrad=False, maximize=False,
            grad_scale=None if self.factor == 1 else torch.full((), 1 / self.factor, device=device),
        )  # fmt: skip


class FairseqAdam(stock.FairseqAdam):
    """`--optimizer=adam` over `FusedAdam`; files name it as they name fairseq's."""

    def __init__(self, cfg: Any, params: Iterable[nn.Parameter]) -> None:
        FairseqOptimizer.__init__(self, cfg)
        self._optimizer = FusedAdam(params, **self.optimizer_config)


def build_optimizer(cfg: DictConfig, params: list[nn.Parameter]) -> FairseqOptimizer:
    """The optimizer that the flags name. Weights in half precision take fairseq's Adam, whose moments are float32."""
    if cfg._name == "adam" and not cfg.use_old_adam and all(p.dtype == torch.float32 for p in params):
        return FairseqAdam(cfg, params)
    optimizer: FairseqOptimizer = optim.build_optimizer(cfg, params)
    return optimizer


def restore_optimizer(optimizer: FairseqOptimizer, saved: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Gives the optimizer a saved state: a slot for each parameter, whose tensors keep their precision.

    Raises ValueError for other groups of parameters.
    """
    inner = optimizer.optimizer
    groups = inner.param_groups
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved["param_groups"]]:
        raise ValueError("it has other parameter groups")
    inner.state = defaultdict(dict)
    for group, old in zip(groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in old.items() if key in group and key != "params"}, **overrides)
        for parameter, number in zip(group["params"], old["params"], strict=True):
            if number in saved["state"]:
                inner.state[parameter] = {key: _like(parameter, x) for key, x in saved["state"][number].items()}


def _like(parameter: Tensor, value: Any) -> Any:
    """A copy on the parameter's device and, of its shape, in its memory order, which fused updates need."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def scale_gradients(optimizer: FairseqOptimizer, parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiplies all gradients before the next step."""
    if isinstance(optimizer.optimizer, FusedAdam):
        optimizer.optimizer.factor = factor
    elif grads := [p.grad for p in parameters if p.grad is not None]:
        torch._foreach_mul_(grads, factor)


class Average(EMA):
    """fairseq's moving average of weights and running statistics, in a few launches; tables are copied.

    Args:
        model: what is averaged, on its device. config: fairseq's group `ema`.
    """

    def __init__(self, model: nn.Module, config: DictConfig) -> None:
        state = model.state_dict()
        super().__init__(model, config, None, {name for name, x in state.items() if not x.is_floating_point()})

    @torch.no_grad()
    def _step_internal(self, new_model: nn.Module, updates: int | None = None) -> None:
        model, new = self.model.state_dict(), new_model.state_dict()
        average = self.fp32_params if self.config.ema_fp32 else model
        # A tensor of several names (tied embeddings) is averaged once for each, one after the other, as released.
        rounds: list[dict[str, Tensor]] = []
        seen: Counter[int] = Counter()
        for name in new:
            if name in self.skip_keys:
                model[name].copy_(new[name])
                continue
            number = seen[average[name].data_ptr()]
            seen[average[name].data_ptr()] += 1
            if number == len(rounds):
                rounds.append({})
            rounds[number][name] = average[name]
        for averaged in rounds:
            values = list(averaged.values())
            torch._foreach_mul_(values, self.decay)
            torch._foreach_add_(values, [new[name].to(average[name]) for name in averaged], alpha=1 - self.decay)
            if self.config.ema_fp32:
                torch._foreach_copy_([model[name] for name in averaged], values)
