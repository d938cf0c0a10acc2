"""Converts a checkpoint between fairseq's `.pt`, a Hugging Face folder and a single `.safetensors` file.

    python -m utils.convert IN OUT [--bpe-dir utils/BPE --half --with-code]

IN is a file or folder that `load_checkpoint` reads. OUT says by its ending what is written: `.pt`, `.safetensors`, or
else a folder (config.json, model.safetensors, vocab.json, merges.txt, and what transformers asks for beside them).
Weights stay as they are, bit by bit (the table of code positions has the length that a kind wants), unless `--half`
makes a small file to give away: half precision, and without the tables that every model computes anew. Training
history is left behind, the run's options and its card go along.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data.images import normalisation
from data.text import GPT2_DIR, Vocabulary
from models.ofa import OFAConfig
from models.ofa.decoder import code_position_ids
from models.weights import model_config
from models.weights.card import Card
from models.weights.description import Description, find_vocabulary
from models.weights.hf_code import write_code
from models.weights.upgrade import TOKEN_TABLES
from utils import hf_layout
from utils.checkpoint import load_checkpoint, save_checkpoint, without_history
from utils.errors import UserError, one_sentence
from utils.files import read_text, text_lines
from utils.hf_layout import CODE_POSITIONS, COMPUTED
from utils.options import path_of, program_name
from utils.program import program
from utils.tensor_file import NOT_STORED, write_tensors

TOKENIZERS = (*hf_layout.TOKENIZER_FILES, hf_layout.TOKENIZER)
# Endings of files, which nobody means as a folder's.
OTHER_ENDINGS = (".bin", ".pth", ".ckpt", ".pkl")


def convert(
    source: Path,
    target: Path,
    bpe_dir: Path | None = None,
    half: bool = False,
    with_code: bool = False,
    ema: bool = False,
) -> list[str]:
    """Reads `source` and writes `target`; kinds are told by name.

    Args:
        bpe_dir: vocabulary folder for a folder's tokenizer files; None finds the checkpoint's as the predictor does.
        half: weights in float16, without `COMPUTED` tables.
        with_code: add the classes to a folder, for `trust_remote_code=True` (models/weights/hf_code.py).
        ema: take the running average of the weights instead of the last ones.

    Returns:
        sentences on what could not be taken along. A folder is written whole or not at all.

    Raises:
        UserError: unreadable input, no OFA model, an ending that says nothing, another vocabulary than the model's.
    """
    if target.suffix in OTHER_ENDINGS:
        raise UserError(f"{target}: use a name that ends in .pt or .safetensors, or name a folder.")
    if with_code and target.suffix in (".pt", ".safetensors"):
        raise UserError(f"--with-code is for folders: name a folder instead of {target}.")
    if os.path.exists(source) and os.path.exists(target) and source.samefile(target):
        raise UserError(f"{target} is the checkpoint that is read: choose another name.")
    checkpoint = load_checkpoint(source)
    config = model_config(checkpoint, source=str(source))
    average = (checkpoint.get("extra_state") or {}).get("ema")
    if ema and average is None:
        raise UserError(f"{source} holds no running average of the weights: leave out --ema.")
    state: dict[str, torch.Tensor] = dict(average if ema and average else checkpoint["model"])
    not_taken = []
    if average is not None and not ema:
        not_taken = [f"The running average of the weights in {source} is left out: pass --ema to convert it instead."]
    if CODE_POSITIONS in state:  # of another length in older files and in folders
        state[CODE_POSITIONS] = code_position_ids(config.code_window, config.image_bucket_size)
    if half:
        kept_entries = {k: v for k, v in _without_copies(state).items() if not k.endswith(COMPUTED)}
        state = {k: v.half() if v.is_floating_point() else v for k, v in kept_entries.items()}
    if target.suffix == ".pt":
        kept = {key: value for key, value in checkpoint.items() if key not in NOT_STORED}
        save_checkpoint({**without_history(_complete(state)), **kept}, target)
        return not_taken
    stored = _without_copies(state)
    if target.suffix == ".safetensors":
        write_tensors(target, stored, checkpoint)
        return not_taken
    _check_target(target)
    with _whole_folder(target) as draft:
        hf_layout.write_json(draft / "config.json", hf_layout.to_config(asdict(config), asdict(OFAConfig())))
        notes = _copy_processor(source, draft) if source.is_dir() else None
        if notes is None:
            card = Card.read(checkpoint, str(source))
            task = _task_options(checkpoint) | ({} if card is None else card.task_options(str(source)))
            _write_image_processor(draft, task)
            notes = _write_tokenizer(draft, Description(str(source), None, config, task, card=card), bpe_dir)
        if CODE_POSITIONS in stored:
            stored[CODE_POSITIONS] = hf_layout.code_positions(stored[CODE_POSITIONS], config.code_window)
        if with_code:
            write_code(draft)
        write_tensors(draft / hf_layout.WEIGHT_FILES[0], hf_layout.to_layout_names(stored), checkpoint)
    return [*notes, *not_taken]


def _check_target(folder: Path) -> None:
    """Raises UserError for a file, and for a folder with files of these names that an OFA model is not."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name another folder, or use a name that ends in .pt or .safetensors.")
    written = ("config.json", "preprocessor_config.json", "tokenizer_config.json", *hf_layout.WEIGHT_FILES, *TOKENIZERS)
    if there := [name for name in written if os.path.lexists(folder / name)]:
        try:
            hf_layout.read_options(folder)
        except UserError as error:
            raise UserError(
                f"{folder} holds {there[0]} of something other than an OFA model: name another folder."
            ) from error


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write to, beside `target`; its files go there at the end of the block, and only then."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield draft
            target.mkdir(exist_ok=True)
            files = sorted(path.name for path in draft.iterdir())
            for name in files:
                (draft / name).replace(target / name)
            if any(name in files for name in TOKENIZERS):  # of an earlier conversion, which would be read instead
                for name in set(TOKENIZERS) - set(files):
                    (target / name).unlink(missing_ok=True)
        finally:
            shutil.rmtree(draft)
    except OSError as error:
        raise UserError(f"{target} could not be written ({one_sentence(error)[:-1]}).") from error


def _without_copies(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries without the second and third name of the tied token table."""
    first = next(name for name in TOKEN_TABLES if name in state)
    copies = [name for name in TOKEN_TABLES if name in state and name != first]
    return {k: v for k, v in state.items() if k not in copies or not torch.equal(v, state[first])}


def _complete(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries with all three names of the tied token table and the two marks of fairseq's format."""
    table = state[next(name for name in TOKEN_TABLES if name in state)]
    marks = {name: torch.tensor([3.0], dtype=table.dtype) for name in hf_layout.VERSION_ENTRIES}
    return {**dict.fromkeys(TOKEN_TABLES, table), **marks, **state}


def _task_options(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the run that say how texts and images were prepared; empty when the checkpoint has none."""
    if checkpoint.get("cfg"):
        return dict(checkpoint["cfg"].get("task") or {})
    args = checkpoint.get("args")
    return {} if args is None else vars(args)


def _copy_processor(source: Path, target: Path) -> list[str] | None:
    """Copies the tokenizer and image processor files of a folder; None when it has no tokenizer files."""
    whole = all((source / name).is_file() for name in hf_layout.TOKENIZER_FILES)
    if not whole and not (source / hf_layout.TOKENIZER).is_file():
        return None
    for path in [*source.glob("*.json"), *source.glob("*.txt")]:
        if path.name != "config.json" and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)
    return []


def _write_image_processor(target: Path, task: Mapping[str, Any]) -> None:
    side = task.get("patch_image_size")
    if side is None:
        return
    mean, std = normalisation(bool(task.get("imagenet_default_mean_and_std")))
    content = {"image_processor_type": "OFAImageProcessor", "size": {"height": side, "width": side}}
    hf_layout.write_json(target / "preprocessor_config.json", {**content, "image_mean": mean, "image_std": std})


def _write_tokenizer(target: Path, description: Description, bpe_dir: Path | None) -> list[str]:
    """Writes the tokenizer's files and tokenizer_config.json, or returns why not."""
    if description.option("bpe", "gpt2") != "gpt2":
        return [
            "No tokenizer files: the layout has GPT-2's byte-level BPE only, not BERT's; transformers cannot load it."
        ]
    folder, vocab = _find_vocabulary(description, bpe_dir)
    bpe = folder if (folder / "encoder.json").is_file() else GPT2_DIR
    encoder = json.loads(read_text(bpe / "encoder.json"))
    token_of = {str(number): token for token, number in encoder.items()}
    symbols = [vocab[number] for number in range(vocab.mask + 1)]
    ids = {token_of.get(symbol, symbol): number for number, symbol in enumerate(symbols)}
    numbers = {"code_dict_size": vocab.num_codes, "num_bins": vocab.num_bins}
    hf_layout.write_json(target / "tokenizer_config.json", {"tokenizer_class": "OFATokenizer", **numbers})
    missing = [token for token in encoder if token not in ids]
    if not missing:
        (target / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
        shutil.copyfile(bpe / "vocab.bpe", target / "merges.txt")
        return []
    # Merges need the tokens they make: those the model lacks have ids behind its own, and become <unk> when read.
    ids |= {vocab[number]: number for number in range(len(symbols), len(vocab))}
    ids |= {token: number for number, token in enumerate(missing, len(vocab))}
    merges = [line for line in text_lines(read_text(bpe / "vocab.bpe")) if line]
    hf_layout.write_tokenizer(target / hf_layout.TOKENIZER, ids, [m for m in merges if not m.startswith("#version:")])
    return [
        f"{folder}/dict.txt lacks {len(missing)} of GPT-2's tokens: {hf_layout.TOKENIZER} has them as "
        "unknown ones, and needs OFATokenizer of models.hf."
    ]


def _find_vocabulary(description: Description, bpe_dir: Path | None) -> tuple[Path, Vocabulary]:
    """The folder given, or the one that the predictor would find; for a model without a card one that is smaller."""
    numbers = {
        "code_dict_size": description.option("code_dict_size", 8192),
        "num_bins": description.option("num_bins", 1000),
    }
    if bpe_dir is None:
        try:
            found, vocab = find_vocabulary(description, "--bpe-dir")
            return Path(found), vocab
        except UserError:
            if description.card is not None:
                raise
    folder = bpe_dir or _first_folder(description.options.get("bpe_dir"), GPT2_DIR)
    vocab, size = Vocabulary.load(folder, **numbers), description.model.vocab_size
    if len(vocab) > size:
        raise UserError(
            f"The vocabulary of {folder} has {len(vocab)} tokens, the model {size}: name the folder it was trained "
            "with (--bpe-dir)."
        )
    if description.card is not None:
        advice = "name the folder it was trained with"
        description.card.check_vocabulary(vocab, description.source, f"--bpe-dir={folder}", advice)
    return folder, vocab


def _first_folder(candidate: str | None, otherwise: Path) -> Path:
    return Path(candidate) if candidate and (Path(candidate) / "dict.txt").is_file() else otherwise


@program("python -m utils.convert")
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        program_name("python -m utils.convert"),
        description="Convert a checkpoint: fairseq .pt, Hugging Face folder, .safetensors.",
    )
    parser.add_argument("source", type=path_of, metavar="IN", help="checkpoint file or Hugging Face folder")
    parser.add_argument("target", type=path_of, metavar="OUT", help="name ending in .pt or .safetensors, or a folder")
    parser.add_argument("--bpe-dir", type=path_of, help="vocabulary folder (default: found as predict.py does)")
    parser.add_argument("--half", action="store_true", help="half precision, without tables that are recomputed")
    parser.add_argument("--ema", action="store_true", help="the running average of the weights, not the last ones")
    parser.add_argument("--with-code", action="store_true", help="add our classes, for trust_remote_code=True")
    args = parser.parse_args(argv)
    notes = convert(args.source, args.target, args.bpe_dir, args.half, args.with_code, args.ema)
    print(*notes, f"Wrote {args.target}.", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
