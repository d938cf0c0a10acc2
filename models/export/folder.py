"""A folder with programs and all that a user of them needs; it is written whole or not at all."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from data.images import normalisation
from data.prompts import PROMPTS, prompt
from data.tasks import TASKS
from models.export import onnx_files, programs
from models.export.programs import FOLDED, Traced
from models.generation import GenerationConfig
from models.ofa import OFA
from models.ofa.folding import InferenceOnly
from models.predictor import OFAPredictor
from utils.errors import UserError
from utils.files import check_folder, parse_json, read_text
from utils.hf_layout import write_json

FORMATS = ("onnx", "torch")
KIND = "ofa-export"  # "kind" in config.json, by which an earlier export is told
EXAMPLE = Path(__file__).with_name("caption.py")
# Options of decoding that config.json always names.
DECODING = ("beam", "max_len_a", "max_len_b", "min_len", "lenpen", "no_repeat_ngram_size")


def export(predictor: OFAPredictor, folder: Path, formats: tuple[str, ...] = FORMATS) -> dict[str, float]:
    """Writes programs, tokenizer.json, config.json, and with ONNX files caption.py, to a new folder or an earlier one.

    Args:
        predictor: on the CPU, in float32. formats: some of `FORMATS`.

    Returns:
        for each format, the largest relative difference of its programs from the model (`programs.difference`).

    Raises:
        UserError: an option that no program can express, a folder of something else, packages that are missing, or a
            difference above `programs.TOLERANCE`.
    """
    check_target(folder)
    if "onnx" in formats:
        onnx_files.check_packages()
    check_model(predictor.model)
    model, side = predictor.model, predictor.shared.patch_image_size
    code = predictor.description.task == "image_gen"
    try:
        traced = programs.trace(model, side, code)
    except ValueError as error:  # images that the model has no positions for
        raise UserError(str(error)) from error
    with _whole_folder(folder) as draft:
        differences = _write_programs(model, traced, draft, formats, side, code)
        predictor.vocab.tokenizer().save(str(draft / "tokenizer.json"))
        write_json(draft / "config.json", describe(predictor, formats, code))
        if "onnx" in formats:
            shutil.copyfile(EXAMPLE, draft / EXAMPLE.name)
    return differences


def check_model(model: OFA) -> None:
    """UserError for a model that no program can express; it names the option."""
    if model.config.num_images > 1:
        raise UserError("num_images=2 cannot be exported: the encoder's program takes one image.")
    if any(isinstance(module, InferenceOnly) and not isinstance(module, FOLDED) for module in model.modules()):
        raise UserError("int8 cannot be exported: load the model without it.")
    kinds = {x.dtype for x in (*model.parameters(), *model.buffers())}
    if odd := kinds - {torch.float32, torch.int64}:  # tables of indices are int64
        raise UserError(f"dtype: weights of {odd.pop()} cannot be exported, load the model in float32.")
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise UserError("compile cannot be exported: load the model without it.")


def check_target(folder: Path) -> None:
    """UserError unless a folder can be written, and is new, empty or an earlier export."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder.")
    check_folder(folder.absolute().parent, "FOLDER")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        earlier = parse_json(read_text(folder / "config.json")).get("kind") == KIND
    except (OSError, ValueError, AttributeError, RecursionError):
        earlier = False
    if not earlier:
        raise UserError(f"{folder} holds something other than an export: name another folder.")


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write to, beside `target`, which it becomes at the end of the block, and only then."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        draft = beside / "new"
        draft.mkdir()
        yield draft
        if target.exists():
            os.replace(target, beside / "old")
        os.replace(draft, target)
    finally:
        shutil.rmtree(beside)


def _write_programs(
    model: OFA, traced: dict[str, Traced], draft: Path, formats: tuple[str, ...], side: int, code: bool
) -> dict[str, float]:
    found = {}
    if "torch" in formats:
        files = {name: draft / f"{name}.pt2" for name in traced}
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "No complete tensor found"
            )  # of the token table, a view in Hugging Face's
            for name, file in files.items():
                torch.export.save(traced[name].program, file)
        loaded = {name: torch.export.load(file) for name, file in files.items()}
        call = programs.caller(loaded, model.config.decoder_layers)
        found["torch"] = programs.difference(model, call, side, code)
    if "onnx" in formats:
        onnx_files.write(traced, draft)
        found["onnx"] = programs.difference(model, onnx_files.caller(draft, list(traced)), side, code)
    return found


def describe(predictor: OFAPredictor, formats: tuple[str, ...], code: bool) -> dict[str, Any]:
    """Content of config.json: what the programs were made of, and what their user has to know."""
    model, vocab, description = predictor.model, predictor.vocab, predictor.description
    mean, std = normalisation(predictor.shared.imagenet_default_mean_and_std)
    ids = {name: int(getattr(vocab, name)) for name in ("bos", "pad", "eos", "unk", "mask", "code_start", "bin_start")}
    return {
        "kind": KIND,
        "formats": list(formats),
        "task": description.task,
        "writes": "image codes" if code else "text",
        "model": {
            "layers": model.config.decoder_layers,
            "heads": model.config.decoder_attention_heads,
            "width": model.config.decoder_embed_dim,
            "vocab_size": model.config.vocab_size,
            "source_limit": model.encoder.max_positions,
            "target_limit": model.decoder.max_length(code),
        },
        "image": {"side": predictor.shared.patch_image_size, "mean": mean, "std": std, "resize": "bicubic"},
        "ids": {**ids, "codes": vocab.num_codes, "bins": vocab.num_bins},
        "prompts": {name: prompt(name, vocab.bpe) for name in PROMPTS},
        "decoding": {task: _decoding(description.decoding(task, {})) for task in TASKS},
    }


def _decoding(config: GenerationConfig) -> dict[str, Any]:
    """The options that differ from their defaults, and `DECODING`."""
    usual = {field.name: field.default for field in fields(config)}
    return {name: value for name, value in asdict(config).items() if name in DECODING or value != usual[name]}
