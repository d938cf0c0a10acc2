"""The Hugging Face folder layout of the published models: names of files and parameters, config.json."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from utils.constants import BOS, EOS, PAD
from utils.errors import UserError
from utils.files import parse_json, read_text

T = TypeVar("T")

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
TOKENIZER_FILES = ("vocab.json", "merges.txt")
# File that describes the images -> where in it; None = all of it.
IMAGE_PROCESSORS = {"preprocessor_config.json": None, "processor_config.json": "image_processor"}
TOKENIZER = "tokenizer.json"  # both in one, as `transformers` writes it
# Inside layers.N.: their name -> ours. No name stands on both sides, so renaming twice changes nothing.
LAYER_NAMES = {
    "encoder": {"self_attn_mid_layer_norm": "attn_ln", "ffn_layer_norm": "ffn_layernorm"},
    "decoder": {
        "self_attn_mid_layer_norm": "self_attn_ln",
        "cross_attn_mid_layer_norm": "cross_attn_ln",
        "cross_attn": "encoder_attn",
        "cross_attn_layer_norm": "encoder_attn_layer_norm",
        "ffn_layer_norm": "ffn_layernorm",
    },
}
_OUR_NAMES = {side: {ours: theirs for theirs, ours in names.items()} for side, names in LAYER_NAMES.items()}
_LAYER_ENTRY = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.([^.]+)\.(.+)")
# fairseq's mark of the format; the layout does not have it.
VERSION_ENTRIES = ("encoder.version", "decoder.version")
# A table that the authors' class checks the length of: begin of sentence, the grid, and these; fairseq's has one more.
CODE_POSITIONS = "decoder.image_position_idx"
COMPUTED = ("token_rp_bucket", "image_rp_bucket", CODE_POSITIONS)  # ends of names of tables that no file needs
BEYOND_GRID = 768

# config.json: every field with its default. Some belong to the layout only and change nothing here.
DEFAULTS: dict[str, Any] = {
    "model_type": "ofa",
    "vocab_size": 59457,
    "max_position_embeddings": 1024,
    "d_model": 512,
    "encoder_layers": 4,
    "encoder_ffn_dim": 2048,
    "encoder_attention_heads": 8,
    "decoder_layers": 4,
    "decoder_ffn_dim": 2048,
    "decoder_attention_heads": 8,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "use_cache": True,
    "is_encoder_decoder": True,
    "activation_function": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.02,
    "classifier_dropout": 0.0,
    "scale_embedding": False,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "decoder_start_token_id": BOS,
    "eos_token_id": EOS,
    "forced_eos_token_id": EOS,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "normformer": True,
    "encoder_drop_path_rate": 0.0,
    "decoder_drop_path_rate": 0.0,
    "layernorm_embedding": True,
    "patch_layernorm_embedding": True,
    "resnet_type": "resnet101",
    "resnet_model_path": None,
    "resnet_drop_path_rate": 0.0,
    "token_bucket_size": 256,
    "image_bucket_size": 42,
    "add_type_embedding": True,
    "share_decoder_input_output_embed": True,
    "attn_scale_factor": 2.0,
    "code_layernorm_embedding": True,
    "code_image_size": 128,
    "entangle_position_embedding": False,
}
# Their option -> the options of `OFAConfig` it stands for; all others have one name.
_OPTIONS = {
    "d_model": ("encoder_embed_dim", "decoder_embed_dim"),
    "encoder_ffn_dim": ("encoder_ffn_embed_dim",),
    "decoder_ffn_dim": ("decoder_ffn_embed_dim",),
    "max_position_embeddings": ("max_source_positions", "max_target_positions"),
    "normformer": ("scale_attn", "scale_fc"),
}
# Options the layout has no word for: so it is in all its models.
_IMPLIED = {"scale_heads": True, "disable_entangle": True, "share_all_embeddings": True}


def to_fairseq_names(state: Mapping[str, T]) -> dict[str, T]:
    """The same entries under fairseq's names; those already so named stay."""
    return {_renamed(name, LAYER_NAMES): value for name, value in state.items()}


def to_layout_names(state: Mapping[str, T]) -> dict[str, T]:
    """The same entries under the layout's names, without the two it does not have (`VERSION_ENTRIES`)."""
    return {_renamed(name, _OUR_NAMES): value for name, value in state.items() if name not in VERSION_ENTRIES}


def code_positions(ids: Tensor, window: int) -> Tensor:
    """The entries of `CODE_POSITIONS` that the layout has; window: cells per side of the grid of image codes."""
    return ids[: 1 + window**2 + BEYOND_GRID].clone()


def _renamed(name: str, names: Mapping[str, Mapping[str, str]]) -> str:
    match = _LAYER_ENTRY.fullmatch(name)
    if match is None:
        return name
    side, layer, module, rest = match.groups()
    return f"{side}.layers.{layer}.{names[side].get(module, module)}.{rest}"


def to_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Content of config.json -> options called as in `OFAConfig`, beside entries that are none.

    An option of `OFAConfig` that stands in config.json under its own name wins over the layout's.
    """
    options = {**_IMPLIED, **DEFAULTS, **config, "resnet_model_path": None}
    return {ours: options[theirs] for theirs, names in _OPTIONS.items() for ours in names} | options


def to_config(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `OFAConfig` -> content of config.json.

    What the layout has no word for is added under our name, where it differs from what `to_options` and then
    `defaults` (those of `OFAConfig`) make of its absence.
    """
    config = {name: options.get(name, default) for name, default in DEFAULTS.items()}
    config |= {theirs: options[names[0]] for theirs, names in _OPTIONS.items()}
    config["resnet_model_path"] = None  # the trunk's weights are in the weight file
    understood = {**defaults, **to_options(config)}
    return config | {k: v for k, v in options.items() if k not in config and understood[k] != v}


def find_weights(folder: Path) -> Path:
    """The weight file of a folder; raises UserError when the folder is not in this layout."""
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None and (parts := [name for name in WEIGHT_FILES if (folder / f"{name}.index.json").is_file()]):
        raise UserError(
            f"{folder} has its weights in several files ({parts[0]}.index.json), which are not read: save it with "
            'max_shard_size="1TB".'
        )
    if weights is None or not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is a folder without config.json and {' or '.join(WEIGHT_FILES)}: "
            "name a checkpoint file, or a folder in Hugging Face layout."
        )
    return weights


def read_options(folder: Path) -> dict[str, Any]:
    """`to_options` of a folder's config.json, without `code_image_size` where it is not in there: the weights tell.

    Raises UserError when the file is unreadable or another model's.
    """
    path = folder / "config.json"
    try:
        config = parse_json(read_text(path))
        kind = config.get("model_type")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON object ({error!s:.200}): copy or download the folder again.") from error
    if kind != "ofa":
        raise UserError(f"{path} describes a model of type {kind!r:.60}, not 'ofa': name an OFA folder.")
    options = to_options(config)
    if "code_image_size" not in config:
        del options["code_image_size"]
    return options


def read_image_processor(folder: Path) -> dict[str, Any] | None:
    """What a folder says of its images, in a file of their own or in the processor's; None if it says nothing.

    Raises UserError for a file that cannot be read.
    """
    for name, key in IMAGE_PROCESSORS.items():
        path = folder / name
        if not path.exists():
            continue
        try:
            content = parse_json(read_text(path))
            found = content if key is None else content.get(key)
            if found is not None:
                return dict(found.items())
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is not a JSON object ({error!s:.200}): copy the folder again.") from error
    return None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file of the layout."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(path: Path, ids: Mapping[str, int], merges: Sequence[str]) -> None:
    """Writes byte-level BPE in the form of `tokenizers`. ids: of the tokens; merges: pairs "A B", the first wins."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    ends = {name: [token, ids[token]] for name, token in (("cls", "<s>"), ("sep", "</s>"))}
    post = {"type": "RobertaProcessing", **ends, "trim_offsets": True, "add_prefix_space": False}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "byte_fallback": False, "vocab": dict(ids), "merges": list(merges),
    }  # fmt: skip
    parts = {"pre_tokenizer": byte_level, "post_processor": post, "decoder": byte_level, "model": model}
    write_json(path, {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], **parts})
