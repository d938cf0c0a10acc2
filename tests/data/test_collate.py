"""Batches: padding, counts, optional keys."""

import numpy as np
import pytest
import torch

from data.collate import collate
from data.sample import Sample, SkippedRow

PAD = 1


def sample(name: str, source: list[int], target: list[int]) -> Sample:
    return Sample(
        row=ord(name),
        id=name,
        source=torch.tensor(source),
        target=torch.tensor(target),
        prev_output_tokens=torch.tensor([0, *target[:-1]]),
        extras={},
    )


def with_image(name: str, value: float) -> Sample:
    one = sample(name, [0, 5, 2], [6, 2])
    one["patch_image"] = torch.full((3, 4, 4), value)
    one["patch_mask"] = torch.tensor([True])
    return one


def test_text_samples_are_padded_on_the_right() -> None:
    batch = collate([sample("a", [0, 7, 2], [8, 9, 2]), sample("b", [0, 4, 5, 6, 2], [2])], PAD)
    net_input = batch["net_input"]
    assert net_input["src_tokens"].tolist() == [[0, 7, 2, PAD, PAD], [0, 4, 5, 6, 2]]
    assert net_input["src_lengths"].tolist() == [3, 5]
    assert net_input["prev_output_tokens"].tolist() == [[0, 8, 9], [0, PAD, PAD]]
    assert batch["target"].tolist() == [[8, 9, 2], [2, PAD, PAD]]
    assert batch["ntokens"] == 4 and batch["nsentences"] == 2
    assert isinstance(batch["id"], np.ndarray) and batch["id"].tolist() == ["a", "b"]
    assert {net_input[key].dtype for key in ("src_tokens", "src_lengths", "prev_output_tokens")} == {torch.int64}
    assert set(net_input) == {"src_tokens", "src_lengths", "prev_output_tokens"}
    assert set(batch) == {"rows", "id", "nsentences", "ntokens", "net_input", "target"}


def test_pads_inside_a_sample_do_not_count() -> None:
    batch = collate([sample("a", [0, PAD, 2], [PAD, 7, 2])], PAD)
    assert batch["net_input"]["src_lengths"].tolist() == [2]
    assert batch["ntokens"] == 2


def test_images_are_stacked_in_order() -> None:
    net_input = collate([with_image("a", 0.5), with_image("b", -1.0)], PAD)["net_input"]
    assert net_input["patch_images"].shape == (2, 3, 4, 4)
    assert net_input["patch_images"][:, 0, 0, 0].tolist() == [0.5, -1.0]
    assert net_input["patch_masks"].tolist() == [True, True]


def test_allowed_ids_are_found_in_the_padded_batch() -> None:
    first, second = sample("a", [0, 2], [5, 6, 2]), sample("b", [0, 2], [2])
    first["constraint_rows"], first["constraint_ids"] = torch.tensor([1, 1, 2]), torch.tensor([6, 4, 2])
    second["constraint_rows"], second["constraint_ids"] = torch.tensor([0]), torch.tensor([2])
    batch = collate([first, second], PAD)
    masks = torch.zeros(2, 3, 7, dtype=torch.bool)
    masks.view(6, 7)[batch["constraint_rows"], batch["constraint_ids"]] = True
    assert masks[0].sum(1).tolist() == [0, 2, 1] and masks[1].sum(1).tolist() == [1, 0, 0]
    assert masks[0, 1, 4] and masks[0, 1, 6] and masks[0, 2, 2] and masks[1, 0, 2]


def test_extras_are_stacked_or_listed() -> None:
    first, second = sample("a", [0, 2], [2]), sample("b", [0, 2], [2])
    first["extras"] = {"conf": torch.tensor(0.5), "ref_dict": {"yes": 0.5}}
    second["extras"] = {"conf": torch.tensor(1.0), "ref_dict": {}}
    first["decoder_prompt"], second["decoder_prompt"] = [0], [0, 5]
    batch: dict = collate([first, second], PAD)  # type: ignore[assignment]
    assert batch["conf"].tolist() == [0.5, 1.0] and batch["ref_dict"] == [{"yes": 0.5}, {}]
    assert batch["decoder_prompts"] == [[0], [0, 5]]


def test_references_stay_lists_of_texts() -> None:
    first, second = sample("a", [0, 2], [2]), sample("b", [0, 2], [2])
    first["references"], second["references"] = ["one", "two"], ["three"]
    assert collate([first, second], PAD)["references"] == [["one", "two"], ["three"]]


def test_a_mixture_of_keys_is_an_error() -> None:
    with pytest.raises(KeyError, match="patch_image"):
        collate([with_image("a", 1.0), sample("b", [0, 2], [2])], PAD)


def test_no_samples_give_an_empty_batch() -> None:
    assert collate([], PAD) == {}


def test_skipped_rows_are_reported_and_left_out() -> None:
    batch = collate([SkippedRow("x, line 1: bad"), with_image("b", 0.0), SkippedRow("x, line 3: bad")], PAD)
    assert batch["skipped"] == ["x, line 1: bad", "x, line 3: bad"]
    assert batch["nsentences"] == 1 and batch["id"].tolist() == ["b"]
    assert "skipped" not in collate([with_image("b", 0.0)], PAD)


def test_a_batch_of_skipped_rows_only_has_no_samples() -> None:
    assert collate([SkippedRow("bad")], PAD) == {"skipped": ["bad"]}


def test_an_image_that_samples_share_is_there_once_where_asked_for() -> None:
    samples = [with_image("a", 0.5), with_image("b", -1.0), with_image("c", 2.0), with_image("d", 0.5)]
    samples[2]["patch_image"] = samples[0]["patch_image"]  # the same tensor; d only has equal pixels
    net_input = collate(samples, PAD, share_images=True)["net_input"]
    assert net_input["image_rows"].tolist() == [0, 1, 0, 2]
    assert net_input["patch_images"][:, 0, 0, 0].tolist() == [0.5, -1.0, 0.5]
    assert net_input["patch_masks"].shape == (4,)
    for batch in (collate(samples, PAD), collate(samples[:2], PAD, share_images=True)):
        assert "image_rows" not in batch["net_input"] and len(batch["net_input"]["patch_images"]) == batch["nsentences"]
