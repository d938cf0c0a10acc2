"""The `transformers` classes: figures of the original, cache, search, files of the layout, texts and images."""

import inspect
import json

import numpy as np
import pytest
import torch
from forward_cases import CASES, IMAGE_SIZES, VARIANTS, check_logits, load_arrays, make_inputs, make_picture, select
from PIL import Image
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    AutoTokenizer,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
)
from weights import fill_

from data.images import IMAGENET_MEAN, IMAGENET_STD, standard_transform
from data.text import GPT2_DIR, Vocabulary
from models.generation import GenerationConfig, generate
from models.hf import OFAForConditionalGeneration, OFAHFCache, OFAHFConfig, OFAProcessor, OFATokenizer
from models.hf.model import CACHE_NAME
from models.ofa import OFAConfig
from models.weights import load_model
from models.weights.convert import convert
from models.weights.description import describe
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.hf_layout import DEFAULTS, to_layout_names

EOS, PAD = 2, 1
# Of 6, 3 and 2 tokens; an image of 48 pixels has 9 patches.
SOURCES = torch.tensor([[0, 45, 100, 7, 12, 2], [0, 99, 2, 1, 1, 1], [0, 2, 1, 1, 1, 1]])
IMAGES = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
NEW_TOKENS = 9


def make(**options):
    config = OFAConfig.from_arch("ofa_demo", **{"vocab_size": 150, **options})
    return OFAForConditionalGeneration(OFAHFConfig.from_network(config)).eval()


@pytest.fixture(scope="module")
def model():
    """Small, with weights under which outputs differ by image and end at different lengths."""
    return fill_(make())


@pytest.fixture(scope="module")
def arrays():
    return {name: load_arrays(name) for name in ("forward_tiny", "forward_tiny_variants")}


def golden_hf_model(**options):
    return fill_(OFAForConditionalGeneration(OFAHFConfig.from_network(OFAConfig.from_arch("ofa_tiny", **options))))


@pytest.fixture(scope="module")
def tiny_hf_model():
    return golden_hf_model().eval()


def logits_of(model, case, inputs, **options):
    inputs["input_ids"] = inputs.pop("src_tokens")
    inputs["decoder_input_ids"] = torch.from_numpy(case["in_prev_output_tokens"]).long()
    with torch.no_grad():
        return model(**inputs, **options)


@pytest.mark.parametrize("name", [name for name in CASES if name != "image128_sampled"])  # not in the call convention
def test_golden_forward(name, golden, arrays, tiny_hf_model):
    figures, case = golden("forward_tiny.json")["cases"][name], select(arrays["forward_tiny"], name)
    model = golden_hf_model(code_image_size=256).eval() if name == "codes_1024" else tiny_hf_model
    inputs = make_inputs(case, figures["seed"], IMAGE_SIZES.get(name, (128, 128)))
    codes = {"code_masks": torch.from_numpy(case["in_code_masks"])} if "in_code_masks" in case else {}
    mixed = name == "codes_mixed"
    output = logits_of(model, case, inputs, **codes, use_cache=not mixed)
    check_logits(output.logits, case)
    assert (output.past_key_values is None) == mixed
    if mixed:
        with pytest.raises(ValueError, match="use_cache=False or two batches"):
            model(**inputs, **codes, use_cache=True)


@pytest.mark.parametrize("name", ["scale_resids", "no_scales", "entangled_positions", "attn_scale_factor1"])
def test_golden_variants(name, golden, arrays):
    case = select(arrays["forward_tiny_variants"], name)
    figures = golden("forward_tiny_variants.json")["variants"][name]
    size = (figures["picture"],) * 2
    inputs = make_inputs(case, figures["seed"], size)
    inputs["patch_images"] = torch.from_numpy(make_picture(case, figures["seed"], size))
    check_logits(logits_of(golden_hf_model(**VARIANTS[name]).eval(), case, inputs).logits, case)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_config_says_all(options, tmp_path):
    config = OFAConfig.from_arch("ofa_base", **options, dropout=0.25, max_target_positions=512, num_images=2)
    OFAHFConfig.from_network(config).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).network() == config


def test_config_defaults(tmp_path):
    config = OFAHFConfig()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    config.save_pretrained(tmp_path)
    assert DEFAULTS.items() <= json.loads((tmp_path / "config.json").read_text()).items()
    released = OFAHFConfig.from_network(OFAConfig.from_arch("ofa_large"))
    assert not (set(released.to_dict()) - set(config.to_dict()))  # needs no option of ours


def search(model, images, use_cache, **options):
    return model.generate(
        SOURCES, patch_images=images, use_cache=use_cache, return_dict_in_generate=True, output_scores=True,
        **{"num_beams": 5, "num_return_sequences": 3, "no_repeat_ngram_size": 3, "max_new_tokens": 90, **options},
    )  # fmt: skip


@pytest.mark.parametrize("images", [None, IMAGES], ids=["text", "images"])
def test_cache_changes_nothing(model, images):
    """90 tokens: the cache grows on the way."""
    options = {"forced_eos_token_id": None, "min_new_tokens": 80}
    cached, plain = (search(model, images, use_cache, **options) for use_cache in (True, False))
    assert cached.past_key_values.get_seq_length() >= 80 and plain.past_key_values is None
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(cached.sequences_scores, plain.sequences_scores, atol=1e-4, rtol=0)


def test_greedy_sampling_and_image_codes(model):
    for options in ({}, {"do_sample": True, "num_return_sequences": 2}, {"code_masks": torch.ones(3).bool()}):
        outputs = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            outputs.append(
                model.generate(SOURCES, patch_images=IMAGES, max_new_tokens=9, use_cache=use_cache, **options)
            )
        assert torch.equal(*outputs) and outputs[0].size(0) == 3 * options.get("num_return_sequences", 1)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_both_names_of_the_cache(model, name):
    """`transformers` 5.24 renamed it; a caller written for either version is served by either."""
    inputs = {"input_ids": SOURCES, "patch_images": IMAGES}
    tokens = torch.tensor([[0, 5, 6], [0, 7, 8], [0, 8, 9]])
    with torch.no_grad():
        whole = model(**inputs, decoder_input_ids=tokens, use_cache=False).logits
        first = model(**inputs, decoder_input_ids=tokens[:, :2])
        held = first[CACHE_NAME]
        assert first.past_key_values is held
        last = model(**inputs, decoder_input_ids=tokens[:, 2:], **{name: held})
    assert last[CACHE_NAME] is held and held.get_seq_length() == 3
    torch.testing.assert_close(last.logits, whole[:, 2:], atol=1e-5, rtol=0)
    assert name in model.config.keys_to_ignore_at_inference
    with pytest.raises(ValueError, match="pass one"):
        model(**inputs, decoder_input_ids=tokens, past_key_values=held, cache=held)
    with pytest.raises(ValueError, match="DynamicCache"):
        model(**inputs, decoder_input_ids=tokens, **{name: DynamicCache()})


def test_cache_has_the_name_that_generate_reads(model):
    output = search(model, IMAGES, True, max_new_tokens=4)
    assert type(output[CACHE_NAME]) is OFAHFCache
    assert CACHE_NAME in inspect.signature(type(model).prepare_inputs_for_generation).parameters


class EndAsInFairseq(LogitsProcessor):
    """No padding inside, and at the last step the end of sentence at its own price."""

    def __call__(self, input_ids, scores):
        last, end = input_ids.size(1) == NEW_TOKENS, scores[:, EOS].clone()
        scores = scores.masked_fill(torch.full_like(scores, last).bool(), -torch.inf)
        scores[:, PAD], scores[:, EOS] = -torch.inf, end
        return scores


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0])
def test_search_by_the_same_rules(model, penalty):
    """With these options the best output and its score are those of `models.generation`; see docs/huggingface.md."""
    output = search(
        model, IMAGES, True, num_return_sequences=1, max_new_tokens=NEW_TOKENS, min_new_tokens=1,
        length_penalty=penalty, early_stopping=True, forced_eos_token_id=None,
        logits_processor=LogitsProcessorList([EndAsInFairseq()]),
    )  # fmt: skip
    options = GenerationConfig(
        max_len_b=NEW_TOKENS - 1, no_repeat_ngram_size=3, lenpen=penalty, unnormalized=penalty == 0
    )
    ours = [hyps[0] for hyps in generate(model, {"src_tokens": SOURCES, "patch_images": IMAGES}, options)]
    found = [[token for token in row.tolist()[1:] if token != PAD] for row in output.sequences]
    assert found == [best.tokens.tolist() for best in ours]
    assert output.sequences_scores.tolist() == pytest.approx([best.score for best in ours], abs=1e-4)
    if penalty == 1.0:  # then some end by themselves and some at the limit
        assert len({len(tokens) for tokens in found}) > 1


def test_forced_end_costs_nothing(model):
    """What the layout's forced_eos_token_id does to the score of an output that is cut off."""
    forced, cut = (search(model, IMAGES, True, max_new_tokens=4, forced_eos_token_id=end) for end in (EOS, None))
    assert (forced.sequences[:, -1] <= EOS).all() and (cut.sequences[:, -1] > EOS).any()


def test_encoder_outputs_labels_and_wrong_calls(model):
    targets = torch.tensor([[5, 6, 2], [7, 2, -100], [8, 9, 2]])
    inputs = {"input_ids": SOURCES, "patch_images": IMAGES, "patch_masks": torch.tensor([True, False, True])}
    with torch.no_grad():
        output = model(**inputs, labels=targets)
        shifted = torch.tensor([[0, 5, 6], [0, 7, 2], [0, 8, 9]])
        again = model(encoder_outputs=model.get_encoder()(**inputs), decoder_input_ids=shifted, return_dict=False)
    assert output.past_key_values is None
    torch.testing.assert_close(again[0], output.logits, atol=1e-5, rtol=0)
    log_probs = output.logits.log_softmax(-1)
    kept = [log_probs[b, t, targets[b, t]] for b in range(3) for t in range(3) if targets[b, t] >= 0]
    torch.testing.assert_close(output.loss, -torch.stack(kept).mean())
    for wrong, message in (
        ({"input_ids": SOURCES}, "decoder_input_ids are missing"),
        ({"decoder_input_ids": shifted}, "input_ids or encoder_outputs"),
        ({"encoder_outputs": (IMAGES,), "decoder_input_ids": shifted}, "padding_mask"),
        ({"input_ids": SOURCES, "decoder_input_ids": shifted, "past_key_values": DynamicCache()}, "DynamicCache"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**wrong)


def assert_same_weights(a, b):
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    tied = {"decoder.embed_tokens.weight", "decoder.output_projection.weight"}
    assert stored == set(to_layout_names(model.state_dict())) - tied
    assert "decoder.layers.1.cross_attn_mid_layer_norm.weight" in stored
    for auto in (AutoModel, AutoModelForSeq2SeqLM, AutoModelForImageTextToText):
        loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is OFAForConditionalGeneration and not any(report.values())
        assert_same_weights(loaded, model)
        assert loaded.decoder.output_projection.weight is loaded.encoder.embed_tokens.weight
    assert_same_weights(load_model(tmp_path), model)


def test_published_folder(model, tmp_path):
    """config.json with fields of the layout only, all tensors twice or thrice named, in a pickled file."""
    torch.save(to_layout_names(model.state_dict()), tmp_path / "pytorch_model.bin")
    fields = {name: getattr(model.config, name) for name in DEFAULTS}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same_weights(loaded, model)


def test_what_a_file_lacks_is_initialized(model, tmp_path):
    state = {k: v for k, v in to_layout_names(model.state_dict()).items() if "bucket" not in k and "c_attn" not in k}
    torch.save({k: v for k, v in state.items() if "position_idx" not in k}, tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.endswith("c_attn") for name in report["missing_keys"]) and report["missing_keys"]
    expected = {k: torch.ones_like(v) if "c_attn" in k else v for k, v in model.state_dict().items()}
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_more_tokens(tmp_path):
    model = make()
    model.resize_token_embeddings(160)
    with torch.no_grad():
        assert model(SOURCES, decoder_input_ids=SOURCES).logits.shape == (3, 6, 160)
    model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.network().vocab_size == 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted model with the whole vocabulary."""
    folder = tmp_path_factory.mktemp("hf")
    config = OFAConfig.from_arch("ofa_demo", encoder_embed_dim=8, decoder_embed_dim=8)
    model = OFAForConditionalGeneration(OFAHFConfig.from_network(config))
    torch.save({"model": model.state_dict(), "cfg": {"task": {"patch_image_size": 48}}}, folder / "a.pt")
    assert convert(folder / "a.pt", folder / "hf") == []
    return folder / "hf"


DESCRIBED = ("patch_image_size", "imagenet_default_mean_and_std")


def test_images_are_those_of_the_folders_processor(folder, tmp_path):
    """Also where no checkpoint of this repository has left its own description."""
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not say how large its images are"):
        describe(load_checkpoint(tmp_path), str(tmp_path))
    processors = {
        "processor_config.json": {"image_processor": {"size": {"height": 32, "width": 32}, "image_mean": IMAGENET_MEAN,
                                                      "image_std": IMAGENET_STD}},
        "preprocessor_config.json": {"size": 64},
    }  # fmt: skip
    for (name, content), expected in zip(processors.items(), ([32, True], [64, False]), strict=True):
        (tmp_path / name).write_text(json.dumps(content))
        found = describe(load_checkpoint(tmp_path), str(tmp_path))
        assert [found.option(name) for name in DESCRIBED] == expected
    bad = {
        '{"size": {"shortest_edge": 32, "longest_edge": 64}}': "has the size {'shortest_edge': 32, .*one square size",
        '{"size": 32, "image_mean": [0, 0, 0]}': "was trained with images of mean",
        "[]": "preprocessor_config.json is not a JSON object",
        "{": "preprocessor_config.json is not a JSON object",
    }
    for text, words in bad.items():
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(UserError, match=words):
            describe(load_checkpoint(tmp_path), str(tmp_path))


def test_tokenizer(folder, tmp_path):
    tokenizer, vocab = AutoTokenizer.from_pretrained(folder), Vocabulary.load(GPT2_DIR)
    assert type(tokenizer) is OFATokenizer and len(tokenizer) == len(vocab) == 59457
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    for text in (" what does the image describe?", "Hello  wörld\n\tx", " 漢字 🙂 <|endoftext|>", ""):
        assert tokenizer(text).input_ids == [0, *vocab.encode(text), 2]
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    symbols = "<bin_3> <bin_999> <code_8191>"
    ids = [*vocab.encode(" what color? region:"), *map(vocab.index, symbols.split())]
    assert tokenizer(f" what color? region: {symbols}").input_ids == [0, *ids, 2]
    assert tokenizer.decode(ids[-3:]) == vocab.decode(ids[-3:])
    tokenizer.save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).is_file()
    saved = OFATokenizer.from_pretrained(tmp_path)
    assert saved.get_vocab() == tokenizer.get_vocab()


def test_processor(folder, tmp_path):
    processor = AutoProcessor.from_pretrained(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))
    batch = processor(text=[" a dog", " a"], images=[image, np.asarray(image)])
    assert batch["input_ids"].tolist() == [[0, 10, 2335, 2], [0, 10, 2, 1]]
    assert torch.equal(batch["patch_images"], standard_transform(48)(image).expand(2, -1, -1, -1))
    assert set(processor(text=" a", images=image)) == {"input_ids", "patch_images"}
    with pytest.raises(ValueError, match="text, images, or both"):
        processor()
    processor.save_pretrained(tmp_path)
    for part in (AutoModel.from_pretrained(folder), processor):
        part.save_pretrained(tmp_path / "saved")
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).image_processor.size == {"height": 48, "width": 48}
    images = AutoImageProcessor.from_pretrained(tmp_path, size=32, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
    expected = standard_transform(32, imagenet_mean_std=True)(image)
    assert torch.equal(images(image)["patch_images"][0], expected)
    found = describe(load_checkpoint(tmp_path / "saved"))
    assert [found.option(name) for name in DESCRIBED] == [48, False]
    (folder / "preprocessor_config.json").unlink()
    assert OFAProcessor.from_pretrained(folder).image_processor.size["height"] == 384
    assert OFAProcessor.from_pretrained(folder, size=256).image_processor.size["width"] == 256
