"""Samples -> Batch: the only collate."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.sample import DAMAGED, Batch, NetInput, Sample, SkippedRow


def _pad_right(rows: Sequence[Tensor], value: int) -> Tensor:
    """(L_i, ...) tensors -> (B, max L, ...)."""
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def collate(samples: Sequence[Sample | SkippedRow], pad: int, share_images: bool = False) -> Batch:
    """Pad samples on the right and stack them; optional keys must be in all samples or in none.

    Args:
        samples: what a dataset's items are; rows skipped as bad only leave their message.
        pad: id that fills source, target and previous tokens.
        share_images: put an image that several samples hold, as one tensor, into the batch once. Not for training:
            its batch norm counts samples.
    """
    good = [sample for sample in samples if not isinstance(sample, SkippedRow)]
    skipped = [sample.message for sample in samples if isinstance(sample, SkippedRow)]
    batch = _stack(good, pad, share_images) if good else Batch()
    if skipped:
        batch["skipped"] = skipped
    if notes := [note for sample in good for note in sample.get("image_notes", ())]:
        batch["image_notes"] = notes
    return batch


def without_skipped(batch: Any) -> tuple[Any, list[str]]:
    """A batch, or both parts of one, without the messages of skipped rows; {} if no row is left."""
    parts = batch if isinstance(batch, list) else [batch]
    messages = [message for part in parts for message in part.get("skipped", ())]
    good = [{key: value for key, value in part.items() if key != "skipped"} for part in parts]
    if not any("net_input" in part for part in good):
        return {}, messages
    return good if isinstance(batch, list) else good[0], messages


def damaged_images(batch: Any) -> list[str]:
    """File, line and reason of the images of a batch, or of both parts of one, that are only read in part."""
    parts = batch if isinstance(batch, list) else [batch]
    return [note for part in parts for note in part.get("image_notes", ()) if note.endswith(DAMAGED)]


def prefix_tokens(decoder_prompts: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Decoder prompts without their bos, padded on the right: (B, P)."""
    return _pad_right([torch.tensor(prompt[1:], dtype=torch.long) for prompt in decoder_prompts], pad)


def _stack(samples: list[Sample], pad: int, share_images: bool) -> Batch:
    net_input = NetInput(
        src_tokens=_pad_right([sample["source"] for sample in samples], pad),
        src_lengths=torch.tensor([int((sample["source"] != pad).sum()) for sample in samples]),
        prev_output_tokens=_pad_right([sample["prev_output_tokens"] for sample in samples], pad),
    )
    if "patch_image" in samples[0]:
        images = {id(sample["patch_image"]): sample["patch_image"] for sample in samples}
        if share_images and len(images) < len(samples):
            places = {key: place for place, key in enumerate(images)}
            net_input["image_rows"] = torch.tensor([places[id(sample["patch_image"])] for sample in samples])
            net_input["patch_images"] = torch.stack(list(images.values()))
        else:
            net_input["patch_images"] = torch.stack([sample["patch_image"] for sample in samples])
        net_input["patch_masks"] = torch.cat([sample["patch_mask"] for sample in samples])
    target = _pad_right([sample["target"] for sample in samples], pad)
    batch = Batch(
        rows=np.array([sample["row"] for sample in samples], dtype=np.int64),
        id=np.array([sample["id"] for sample in samples]),
        nsentences=len(samples),
        ntokens=int((target != pad).sum()),
        net_input=net_input,
        target=target,
    )
    if "constraint_rows" in samples[0]:
        starts = (b * target.size(1) for b in range(len(samples)))
        batch["constraint_rows"] = torch.cat(
            [s["constraint_rows"] + start for s, start in zip(samples, starts, strict=True)]
        )
        batch["constraint_ids"] = torch.cat([sample["constraint_ids"] for sample in samples])
    if "decoder_prompt" in samples[0]:
        batch["decoder_prompts"] = [sample["decoder_prompt"] for sample in samples]
    if "references" in samples[0]:
        batch["references"] = [sample["references"] for sample in samples]
    for key, first in samples[0]["extras"].items():
        values = [sample["extras"][key] for sample in samples]
        batch[key] = torch.stack(values) if isinstance(first, Tensor) else values  # type: ignore[literal-required]
    return batch
