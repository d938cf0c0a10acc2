"""Flags -> fairseq's configuration, as its own conversion makes it, without half a second of hydra."""

import ast
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_origin

from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, interpret_dc_type
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import DictConfig, OmegaConf

from utils.errors import UserError, quoted


def configuration(flags: Namespace) -> DictConfig:
    """What `fairseq.dataclass.utils.convert_namespace_to_omegaconf` returns.

    It differs where that function takes a reference to another option, such as the default of `sentence_avg`, for a
    true value. Where a flag names a component without a dataclass, which are fairseq's oldest ones, it is called.

    Raises UserError for a value that is not of its option's type.
    """
    groups: dict[str, Any] = {}
    for field in fields(FairseqConfig):
        if is_dataclass(field.default):
            groups[field.name] = {"_name": None, **_values(field.default, flags)}
            continue
        flag = "arch" if field.name == "model" else field.name
        name = getattr(flags, flag, None)
        component = None if name is None else _component(field.name, name)
        if component is None and name is not None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=UserWarning)  # hydra's notices about its own future
                return convert_namespace_to_omegaconf(flags)
        groups[field.name] = None if component is None else {"_name": name, **_values(component, flags)}
    groups["_name"] = None
    for group in groups.values():
        for name, value in group.items() if isinstance(group, dict) else ():
            group[name] = _referred(value, groups)
    cfg = OmegaConf.create(groups)
    OmegaConf.set_struct(cfg, True)
    return cfg


def _referred(value: Any, groups: dict[str, Any]) -> Any:
    """The value itself or, for `${group.name}`, that option's: OmegaConf would build everything twice for it."""
    while isinstance(value, str) and (reference := re.fullmatch(r"\$\{(\w+)\.(\w+)\}", value)):
        value = groups[reference[1]][reference[2]]
    return value


def _component(group: str, name: str) -> Any:
    """The dataclass of what a flag names; None if it has none."""
    if group == "task":
        return TASK_DATACLASS_REGISTRY.get(name)
    if group == "model":
        known = name in ARCH_MODEL_REGISTRY and name in ARCH_MODEL_NAME_REGISTRY
        return getattr(ARCH_MODEL_REGISTRY[name], "__dataclass", None) if known else None
    registry: Mapping[str, Any] = REGISTRIES[group]["dataclass_registry"]
    return registry.get(name)


def _values(group: Any, flags: Namespace) -> dict[str, Any]:
    """The options of a dataclass: the flags' values, else the defaults."""
    values = {}
    for field in fields(group):
        if field.name.startswith("_"):
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(flags, field.name, default)
        try:
            values[field.name] = _converted(value, field.type)
        except (ValueError, SyntaxError, TypeError) as error:
            flag = f"--{field.name.replace('_', '-')}"
            raise UserError(f"{flag} {quoted(value)} is not of its type, {field.type}: correct it.") from error
    return values


def _converted(value: Any, wanted: Any) -> Any:
    """A value as a field of this type holds it; fairseq stores lists as text here and there."""
    plain: Any = interpret_dc_type(wanted)
    choices = isinstance(plain, type) and issubclass(plain, Enum)
    interpolated = isinstance(value, str) and value.startswith("${")
    if isinstance(value, str) and not (interpolated or choices or plain is str):
        value = ast.literal_eval(value)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, Enum):
        return value.name
    if get_origin(wanted) is list and value is not None and not interpolated:
        (kind,) = get_args(wanted)
        return [kind(item) for item in value] if kind in (int, float) else value
    if value is not None and plain in (int, bool, float) and not interpolated:
        return plain(value)
    return value
