"""Fits the state dict of an older, smaller or language-only checkpoint to a model, and reports what it did.

`RULES` is the whole of it; `describe` reads a model's options off its tensors. Names are the released ones.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from models.ofa.config import ARCHITECTURES, RESNET_BLOCKS, VIT
from models.ofa.resnet import COUNTER
from models.ofa.vit import BLOCKS as VIT_BLOCKS
from models.weights import bart
from utils.errors import UserError
from utils.hf_layout import BEYOND_GRID as BEYOND_GRID_HF
from utils.hf_layout import CODE_POSITIONS, COMPUTED

# One tensor in the model: the name that is loaded last wins.
TOKEN_TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
TRUNK = "encoder.embed_images.conv1.weight"
HEADS = "classification_heads."
# CODE_POSITIONS holds one begin of sentence, window^2 cells, and one of these numbers of further entries: files from
# before June 2022 have what the Hugging Face layout still has.
BEYOND_GRID = (BEYOND_GRID_HF + 1, BEYOND_GRID_HF)
OLD_NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}
# Option -> an entry that only models with this option have (layer 0 stands for all).
PRESENCE = {
    "scale_attn": "encoder.layers.0.attn_ln.weight",
    "scale_fc": "encoder.layers.0.ffn_layernorm.weight",
    "scale_heads": "encoder.layers.0.self_attn.c_attn",
    "scale_resids": "encoder.layers.0.w_resid",
    "layernorm_embedding": "encoder.layernorm_embedding.weight",
    "patch_layernorm_embedding": "encoder.patch_layernorm_embedding.weight",
    "code_layernorm_embedding": "decoder.code_layernorm_embedding.weight",
    "add_type_embedding": "encoder.type_embedding.weight",
}

State = MutableMapping[str, Tensor]


@dataclass
class LoadReport:
    """What was done to fit a checkpoint to a model; `str()` sums it up by prefix.

    Attributes:
        missing: entries the checkpoint lacks; the model keeps its initial values.
        unexpected: entries of the checkpoint left out, harmlessly (anything else raises).
        resized: "name (rows in the checkpoint -> rows in the model)".
        renamed: "old name -> new name".
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        learned = (name for name in self.missing if not name.endswith(COMPUTED))
        lines = [f"{group} kept at their initial values" for group in summarise(learned)]
        lines += [f"{group} of the checkpoint left out" for group in summarise(self.unexpected)]
        lines += [f"{entry} resized" for entry in self.resized]
        lines += [f"{group} renamed" for group in summarise(self.renamed)]
        return "\n".join(lines) or "every entry fits as it is"


def summarise(names: Iterable[str]) -> list[str]:
    """Groups entries by module, whatever the layer: ["encoder.embed_images.* (312 entries)", ...]."""
    counts = Counter(_prefix(name) for name in names)
    return [f"{prefix} ({count} {'entry' if count == 1 else 'entries'})" for prefix, count in counts.items()]


def _prefix(name: str) -> str:
    if name.endswith(COUNTER):
        return f"*.{COUNTER}"
    parts = name.split(" ")[0].split(".")
    if parts[1:2] == ["layers"]:
        parts[2] = "*"
    depth = 4 if parts[1:2] == ["layers"] else 2
    return ".".join(parts[:depth]) + (".*" if len(parts) > depth else "")


@dataclass
class _Upgrade:
    """A state dict being fitted, in place, to the entries of a model."""

    state: State
    target: Mapping[str, Tensor]
    report: LoadReport = field(default_factory=LoadReport)

    def append(self, name: str, rows: Callable[[Tensor, int], Tensor]) -> None:
        """Appends `rows(old, count)` where the checkpoint's table is shorter than the model's and equally wide."""
        old, model = self.state.get(name), self.target.get(name)
        if old is None or model is None or old.shape[1:] != model.shape[1:] or old.size(0) >= model.size(0):
            return
        self.set_rows(name, torch.cat([old, rows(old, model.size(0) - old.size(0)).to(old)]))

    def set_rows(self, name: str, table: Tensor) -> None:
        self.report.resized.append(f"{name} ({self.state[name].size(0)} -> {table.size(0)} rows)")
        self.state[name] = table

    def leave_out(self, name: str) -> None:
        del self.state[name]
        self.report.unexpected.append(name)


def _name_norms(up: _Upgrade) -> None:
    for name in list(up.state):
        match = re.fullmatch(r"(encoder|decoder)(\.layers\.\d+\.)layer_norms\.(\d)\.(weight|bias)", name)
        if match is not None and int(match[3]) < len(OLD_NORMS[match[1]]):
            new = f"{match[1]}{match[2]}{OLD_NORMS[match[1]][int(match[3])]}.{match[4]}"
            up.state[new] = up.state.pop(name)
            up.report.renamed.append(f"{name} -> {new}")


def _split_projections(up: _Upgrade) -> None:
    for name in list(up.state):
        match = re.fullmatch(r"((?:encoder|decoder)\.layers\.\d+\.\w+)\.in_proj_(weight|bias)", name)
        if match is not None:
            for letter, third in zip("qkv", up.state.pop(name).chunk(3), strict=True):
                up.state[f"{match[1]}.{letter}_proj.{match[2]}"] = third
            up.report.renamed.append(f"{name} -> {match[1]}.{{q,k,v}}_proj.{match[2]}")


def _tie_token_tables(up: _Upgrade) -> None:
    stored = [name for name in TOKEN_TABLES if name in up.state]
    for name in TOKEN_TABLES:
        if name not in stored:
            up.report.renamed.append(f"{stored[-1]} -> {name}")
        up.state[name] = up.state[stored[-1]]


def _drop_counters(up: _Upgrade) -> None:
    for name in [name for name in up.state if name.endswith(COUNTER) and name not in up.target]:
        up.leave_out(name)


def _drop_other_heads(up: _Upgrade) -> None:
    for name in [name for name in up.state if name.startswith(HEADS)]:
        if name not in up.target or up.target[name].shape != up.state[name].shape:
            up.leave_out(name)


def _keep_code_positions(up: _Upgrade) -> None:
    if CODE_POSITIONS in up.state:
        if up.state[CODE_POSITIONS].shape != up.target[CODE_POSITIONS].shape:
            up.set_rows(CODE_POSITIONS, up.target[CODE_POSITIONS])
        up.state[CODE_POSITIONS] = up.target[CODE_POSITIONS]


def _append_image_positions(up: _Upgrade) -> None:
    for side in ("encoder", "decoder"):
        up.append(f"{side}.embed_image_positions.weight", _random_rows)


def _append_image_types(up: _Upgrade) -> None:
    name = "encoder.type_embedding.weight"
    up.append(name, lambda old, count: up.target[name][-count:])


def _drop_fillers(up: _Upgrade) -> None:
    table, model = up.state[TOKEN_TABLES[0]], up.target[TOKEN_TABLES[0]]
    unlike = model.size(0) != bart.PADDED_ROWS and model.size(0) > bart.TEXT_ROWS
    if table.size(0) == bart.PADDED_ROWS and unlike and TRUNK not in up.state:
        up.set_rows(TOKEN_TABLES[0], bart.without_fillers(table))
        up.state.update(dict.fromkeys(TOKEN_TABLES, up.state[TOKEN_TABLES[0]]))


def _fit_vocabulary(up: _Upgrade) -> None:
    first = TOKEN_TABLES[0]
    before = up.state[first]
    if before.size(0) == up.target[first].size(0) + 1:
        up.set_rows(first, before[:-1])
    else:
        up.append(first, _random_rows)
    if up.state[first] is not before:
        up.state.update(dict.fromkeys(TOKEN_TABLES, up.state[first]))


def _random_rows(table: Tensor, count: int) -> Tensor:
    return torch.empty(count, table.size(1)).normal_(std=table.size(1) ** -0.5)


def _fill_missing(up: _Upgrade) -> None:
    for name, value in up.target.items():
        if name not in up.state:
            up.state[name] = value
            up.report.missing.append(name)


# Applied in this order to every state dict, whatever it is loaded for.
RULES: tuple[tuple[Callable[[_Upgrade], None], str], ...] = (
    (_name_norms, "the oldest files number a layer's norms"),
    (_split_projections, "old attention modules hold query, key and value projections in one tensor"),
    (_tie_token_tables, "language models have no output projection, safetensors stores a tied table once"),
    (_drop_counters, "frozen batch norm counts no batches, ordinary batch norm does"),
    (_drop_other_heads, "classification heads belong to one task; another task starts without them or with its own"),
    (_keep_code_positions, "follows from code_image_size, which may change between pretraining and fine-tuning"),
    (_append_image_positions, "fine-tuning may use a larger position table than pretraining"),
    (_append_image_types, "files know one image a sample; a second image's type starts at the model's own row"),
    (_drop_fillers, "a small BART has unused tokens between those of the text and <mask>"),
    (_fit_vocabulary, "language models lack image codes, locations and answers; old ones may have one row too many"),
    (_fill_missing, "what a file lacks (image trunk, relative tables, mid norms, counters) starts as initialized"),
)


def upgrade_state_dict(state: State, model: nn.Module, source: str = "The checkpoint") -> LoadReport:
    """Fits `state` to the model, in place, by `RULES`; a strict load then succeeds.

    Args:
        state: names and tensors of a checkpoint; afterward it has exactly the model's names and shapes.
        source: what error messages call it.

    Raises UserError when it is another model: the message names the flags to pass.
    """
    target = model.state_dict()
    renamed = bart.rename_entries(state)
    if not any(name in state for name in TOKEN_TABLES):
        raise UserError(f"{source} is not an OFA model (no {TOKEN_TABLES[0]}): name an OFA checkpoint.")
    found, wanted = describe(state), describe(target)
    upgrade = _Upgrade(state, target, LoadReport(renamed=renamed))
    try:
        for rule, _ in RULES:
            rule(upgrade)
    except (IndexError, RuntimeError) as error:  # tensors of fewer dimensions than a model's
        raise UserError(f"{source} is not an OFA model ({error!s:.200}): name an OFA checkpoint.") from error
    strange = [name for name in state if name not in target]
    strange += [name for name, value in target.items() if state[name].shape != value.shape]
    # Missing layers would be filled, but a model with some layers random is never what is wanted.
    shallow = [name for name in ("encoder_layers", "decoder_layers", "resnet_type") if name in found]
    if strange or any(found[name] != wanted.get(name) for name in shallow):
        raise UserError(_explain(source, found, wanted, strange))
    return upgrade.report


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options of `OFAConfig` that the tensors tell; what cannot be told is absent."""
    options: dict[str, Any] = {name: entry in state for name, entry in PRESENCE.items()}

    def read(option: str, entry: str, dim: int, convert: Callable[[int], int | None] = int) -> None:
        if entry not in state or state[entry].dim() <= dim or option in options:
            return
        if (value := convert(state[entry].shape[dim])) is not None:
            options[option] = value

    for table in TOKEN_TABLES:
        read("vocab_size", table, 0)
        for side in ("encoder", "decoder"):
            read(f"{side}_embed_dim", table, 1)
    for side, text in (("encoder", "source"), ("decoder", "target")):
        if layers := _blocks(state, rf"{side}\.layers"):
            options[f"{side}_layers"] = layers
        read(f"{side}_ffn_embed_dim", f"{side}.layers.0.fc1.weight", 0)
        read(f"{side}_attention_heads", f"{side}.layers.0.self_attn.c_attn", 0)
        read(f"{side}_attention_heads", f"{side}.token_rel_pos_table_list.0.weight", 1)
        read(f"max_{text}_positions", f"{side}.embed_positions.weight", 0, lambda rows: rows - 2)
    read("token_bucket_size", "encoder.token_rel_pos_table_list.0.weight", 0, lambda rows: (rows + 1) // 2)
    read("image_bucket_size", "encoder.image_rel_pos_table_list.0.weight", 0, _side_of_buckets)
    read("image_bucket_size", "encoder.embed_image_positions.weight", 0, lambda rows: _square_side(rows - 1))
    read("code_image_size", CODE_POSITIONS, 0, _code_image_size)
    read("num_images", "encoder.type_embedding.weight", 0, lambda rows: rows - 1)
    if TRUNK in state:
        options["resnet_type"] = _trunk(state)
    return options


def _square_side(cells: int) -> int | None:
    """Side of a square of so many cells; None if there is none."""
    side = math.isqrt(max(cells, 0))
    return side if side > 0 and side * side == cells else None


def _side_of_buckets(rows: int) -> int | None:
    """`image_bucket_size` of a table with a row for each offset of two cells, and three more."""
    offsets = _square_side(rows - 3)
    return None if offsets is None else (offsets + 1) // 2


def _code_image_size(entries: int) -> int | None:
    """`code_image_size` of `CODE_POSITIONS`: only one of the lengths of its end leaves a square."""
    sides = (_square_side(entries - 1 - beyond) for beyond in BEYOND_GRID)
    return next((8 * side for side in sides if side is not None), None)


def _blocks(state: Mapping[str, Tensor], stack: str) -> int:
    """Length of a stack of modules: one more than the largest index behind the pattern `stack`."""
    matches = (re.match(rf"{stack}\.(\d+)\.", name) for name in state)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _trunk(state: Mapping[str, Tensor]) -> str:
    """Type of the image trunk; of two types that are one model (resnet34, resnet50) the usual name."""
    if "encoder.embed_images.positional_embedding" in state:
        layers = _blocks(state, r"encoder\.embed_images\.transformer\.resblocks")
        return VIT if layers == VIT_BLOCKS else f"{VIT} of {layers} blocks"
    stages = tuple(_blocks(state, rf"encoder\.embed_images\.layer{stage}") for stage in (1, 2, 3))
    names = [name for name, blocks in RESNET_BLOCKS.items() if blocks == stages]
    return names[-1] if names else f"of {'+'.join(map(str, stages))} blocks"


def _explain(source: str, found: dict[str, Any], wanted: dict[str, Any], strange: list[str]) -> str:
    """One sentence: what the checkpoint holds, what the model is, and the flags that reconcile them."""
    rows, tokens = found.get("vocab_size", 0), wanted["vocab_size"]
    if rows > tokens + 1:
        return (
            f"{source} has {rows} token rows, the model {tokens}: use the vocabulary it was trained with (--bpe-dir), "
            "and the same answer tokens."
        )
    arch, own_arch = _arch(found), _arch(wanted)
    implied: Mapping[str, Any] = ARCHITECTURES[arch] if arch is not None and arch != own_arch else {}
    flags = [f"--arch {arch}"] if implied else []
    for option, value in found.items():
        if value != implied.get(option, wanted.get(option)) and not _fits(option, value):
            flags.append(f"--{option.replace('_', '-')}" + ("" if value is True else f" {value}"))
    if _size(found) != _size(wanted):
        problem = f"{source} holds a model of {_size(found)}{_brackets(arch)}; expected "
        problem += f"{_size(wanted)}{_brackets(own_arch)}"
    else:
        problem = f"{source} does not fit the model in {', '.join(summarise(strange)) or 'its image trunk'}"
    return f"{problem}: {'pass ' + ' '.join(flags) if flags else 'use the model it was saved from'}."


def _fits(option: str, value: Any) -> bool:
    """Whether the rules make up for the checkpoint's value, whatever the model's is."""
    return value is False or option in ("vocab_size", "code_image_size") or (option, value) == ("num_images", 1)


def _size(options: Mapping[str, Any]) -> str:
    width, depths = options.get("encoder_embed_dim"), [options.get(f"{s}_layers", 0) for s in ("encoder", "decoder")]
    return f"width {width} with {depths[0]}+{depths[1]} layers"


def _brackets(arch: str | None) -> str:
    return "" if arch is None else f" ({arch})"


def _arch(options: Mapping[str, Any]) -> str | None:
    """The named size of these options, the image trunk aside."""
    for arch, sizes in ARCHITECTURES.items():
        if all(options.get(name) == sizes[name] for name in sizes if re.search("embed_dim|layers", name)):
            return arch
    return None
