"""ONNX files: the one place that knows the packages of the extra `export`."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from models.export.programs import Call, Traced
from utils.errors import UserError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
WEIGHTS = "weights.bin"
OPSET = 20  # the first with GELU
SMALL = 1024  # bytes: constants up to here stay in the files
PAGE = 4096  # what memory maps begin at


def check_packages() -> None:
    """UserError unless the packages of the extra are there."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}: install the extra with `pip install -e .[export]`, or pass "
            "--format torch."
        )


def write(traced: Mapping[str, Traced], folder: Path) -> None:
    """Writes NAME.onnx for each program, and `WEIGHTS`, which holds each weight once for all of them."""
    import onnx_ir

    places: dict[bytes, int] = {}
    with open(folder / WEIGHTS, "xb") as file:
        for name, part in traced.items():
            model = _convert(part)
            _move_weights(model, file, places)
            onnx_ir.save(model, folder / f"{name}.onnx")


def _convert(part: Traced) -> Any:
    program = torch.onnx.export(
        part.program,
        input_names=list(part.inputs),
        output_names=list(part.outputs),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model: Any = program.model
    names = {}
    for value in model.graph.inputs:
        for dim, size in part.sizes[value.name].items():
            names[str(value.shape[dim])] = size
    for value in (*model.graph.inputs, *model.graph.outputs):
        for dim, size in enumerate(value.shape):
            if not isinstance(size, int):  # a symbol, or a sum with one
                value.shape[dim] = re.sub(r"\w+", lambda match: names.get(match[0], match[0]), str(size))
    return model


def _move_weights(model: Any, file: BinaryIO, places: dict[bytes, int]) -> None:
    """Writes a model's weights to `file`, in so far as they are not there; places: digest of a weight -> where."""
    import onnx_ir

    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor.nbytes <= SMALL:
            continue
        data = tensor.tobytes()
        digest = hashlib.sha256(data).digest()
        if digest not in places:
            file.write(bytes(-file.tell() % PAGE))
            places[digest] = file.tell()
            file.write(data)
        value.const_value = onnx_ir.ExternalTensor(
            WEIGHTS, places[digest], len(data), tensor.dtype, shape=tensor.shape, name=value.name
        )


def caller(folder: Path, names: Sequence[str]) -> Call:
    """How `difference` calls the files of a folder, with onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    sessions = {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        for name in names
    }

    def call(name: str, inputs: Sequence[Tensor]) -> list[Tensor]:
        session = sessions[name]
        feeds = {given.name: x.numpy() for given, x in zip(session.get_inputs(), inputs, strict=True)}
        return [torch.from_numpy(x) for x in session.run(None, feeds)]

    return call
