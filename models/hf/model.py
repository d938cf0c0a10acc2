"""OFA as a `transformers` model: the modules and the attention of `models.ofa`, behind their call convention.

Shapes: B samples, G rows per sample (beams, samples), L source tokens, T decoder tokens, S encoder positions.
"""

from dataclasses import dataclass, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel, initialization
from transformers.cache_utils import CacheLayerMixin
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils import can_return_tuple

from models.hf.config import OFAHFConfig
from models.ofa import OFA
from models.ofa.cache import DecoderState, LayerCache
from models.ofa.decoder import Decoder, code_position_ids
from models.ofa.encoder import EncoderOutput
from models.ofa.model import ENCODER_INPUTS
from models.ofa.positions import MAX_TEXT, PositionTables, image_buckets, token_buckets
from utils.hf_layout import CODE_POSITIONS, LAYER_NAMES, VERSION_ENTRIES, code_positions

# Decoder positions whose biases a new cache holds; it doubles when they are used up.
CACHE_POSITIONS = 64
# `transformers` 5.24 renamed the cache: `generate` hands it to `forward` and reads it from the output by this name.
CACHE_NAME = "cache" if "cache" in {field.name for field in fields(Seq2SeqLMOutput)} else "past_key_values"


def weight_renamings() -> list[WeightRenaming]:
    """The layout's parameter names -> ours; `transformers` applies them to read a file and undoes them to write it."""
    return [
        WeightRenaming(rf"^{side}\.layers\.(\d+)\.{theirs}\.", rf"{side}.layers.\1.{ours}.")
        for side, names in LAYER_NAMES.items()
        for theirs, ours in names.items()
    ]


@dataclass
class OFAOutput(BaseModelOutput):
    """What the encoder hands to the decoder.

    Attributes:
        last_hidden_state: (B, S, C), image positions first, then text. padding_mask: (B, S), True = padding.
        position_embedding: normalized position embeddings, (1 or B, S, C).
    """

    padding_mask: Tensor | None = None
    position_embedding: Tensor | None = None


def _encoded(outputs: OFAOutput | tuple[Tensor, ...]) -> EncoderOutput:
    """What `models.ofa` calls them; raises ValueError when a part is missing."""
    parts = tuple(outputs.values()) if isinstance(outputs, OFAOutput) else tuple(outputs)
    if len(parts) != 3:
        raise ValueError("encoder_outputs need last_hidden_state, padding_mask and position_embedding.")
    return EncoderOutput(*parts)


class _CacheLayer(CacheLayerMixin):
    """`LayerCache` behind the interface of `transformers`' caches."""

    supports_early_init = False

    def __init__(self, cache: LayerCache) -> None:
        super().__init__()
        self.cache, self.is_initialized = cache, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the tensors exist."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values (B * G, H, T, D); returns those of all positions."""
        return self.cache.append(key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and start of the keys that a mask would cover."""
        return self.cache.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions held."""
        return self.cache.length

    def get_max_length(self) -> int:
        """-1: it grows."""
        return -1

    def reset(self) -> None:
        """Forgets all positions."""
        self.cache.length = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i continues row beam_idx[i] of the same sample."""
        self.cache.reorder(beam_idx)


class OFAHFCache(Cache):
    """`past_key_values` or `cache`: the state of step-by-step decoding of B * G rows.

    Args:
        decoder: the model's. enc: the encoder's output of the B samples. groups: G. code: image codes are decoded.
    """

    def __init__(self, decoder: Decoder, enc: EncoderOutput, groups: int, code: bool) -> None:
        codes = min(decoder.image_position_idx.numel(), decoder.embed_positions.num_embeddings)
        self.limit = codes if code else min(MAX_TEXT, decoder.max_positions)
        self.decoder, self.enc, self.capacity = decoder, enc, min(CACHE_POSITIONS, self.limit)
        self.state: DecoderState = decoder.start(enc, groups, self.capacity, code)
        super().__init__(layers=[_CacheLayer(layer) for layer in self.state.layers])

    def step(self, tokens: Tensor) -> Tensor:
        """Next tokens (B * G, n) -> features (B * G, n, C); raises ValueError beyond the model's positions."""
        needed = self.state.length + tokens.size(1)
        if needed > self.capacity:
            self.capacity = max(needed, min(2 * self.capacity, self.limit))
            self.state.positions = self.decoder.positions(self.enc, self.capacity, self.state.code)
        return self.decoder.step(tokens, self.state)


class _GenerationEncoder(nn.Module):
    """The encoder as `generate` calls it."""

    def __init__(self, model: "OFAForConditionalGeneration") -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        patch_images: Tensor | None = None,
        patch_images_2: Tensor | None = None,
        patch_masks: Tensor | None = None,
        **unused: Any,
    ) -> OFAOutput:
        """Inputs as in `OFAForConditionalGeneration.forward`; unused: requests for weights and hidden states."""
        dtype: torch.dtype = self.model.dtype  # type: ignore[assignment]  # processors make float32, whatever precision a folder has
        first, second = (x if x is None else x.to(dtype) for x in (patch_images, patch_images_2))
        enc = self.model.encode(input_ids, first, patch_masks, second)
        return OFAOutput(enc.out, padding_mask=enc.padding_mask, position_embedding=enc.positions)


class OFAForConditionalGeneration(OFA, PreTrainedModel, GenerationMixin):
    """OFA with the life cycle of a `transformers` model; all functions of `models` take it as the `OFA` it is."""

    config: OFAHFConfig
    config_class = OFAHFConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["EncoderLayer", "DecoderLayer", "Bottleneck"]
    _tied_weights_keys = {
        "decoder.embed_tokens.weight": "encoder.embed_tokens.weight",
        "decoder.output_projection.weight": "encoder.embed_tokens.weight",
    }
    # Not in the layout, or following from config.json.
    _keys_to_ignore_on_load_missing = [
        r"\.version$", r"_rp_bucket$", r"image_position_idx$", r"num_batches_tracked$",
    ]  # fmt: skip
    _keys_to_ignore_on_load_unexpected = [r"\.version$", r"num_batches_tracked$"]
    _keys_to_ignore_on_save = list(VERSION_ENTRIES)

    def __init__(self, config: OFAHFConfig) -> None:
        """A model with random weights; `generate` asks the encoder for the name of its input."""
        PreTrainedModel.__init__(self, config)
        model = OFA(config.network())
        self.encoder, self.decoder = model.encoder, model.decoder
        self.encoder.main_input_name = self.main_input_name  # type: ignore[assignment]
        PreTrainedModel.post_init(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """What a file lacks, as in `OFA`; `transformers` calls it with loaded tensors guarded from change."""
        if isinstance(module, nn.Linear | nn.Embedding):
            initialization.normal_(module.weight, std=self.config.init_std)
            if getattr(module, "bias", None) is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            initialization.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, PositionTables):
            self._init_tables(module)
        else:
            PreTrainedModel._init_weights(self, module)
        for name in ("c_attn", "w_resid"):
            if isinstance(scale := getattr(module, name, None), nn.Parameter):
                initialization.ones_(scale)

    def _init_tables(self, module: PositionTables) -> None:
        options = self.config.network()
        initialization.constant_(module.version, 3.0)
        initialization.copy_(module.token_rp_bucket, token_buckets(options.token_bucket_size))
        initialization.copy_(module.image_rp_bucket, image_buckets(options.image_bucket_size))
        if isinstance(module, Decoder):
            initialization.copy_(module.image_position_idx, self._code_positions())

    def _code_positions(self) -> Tensor:
        options = self.config.network()
        return code_position_ids(options.code_window, options.image_bucket_size)

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        """As in `transformers`, which calls it after loading: a file's table of code positions never counts.

        It follows from config.json, and the authors' folders have it one entry shorter.
        """
        super()._adjust_missing_and_unexpected_keys(loading_info)
        found = loading_info.mismatched_keys
        loading_info.mismatched_keys = {entry for entry in found if entry[0] != CODE_POSITIONS}
        table = self.decoder.image_position_idx
        self.decoder.image_position_idx = self._code_positions().to(table.device)

    def save_pretrained(self, save_directory: Any, *args: Any, state_dict: Any = None, **options: Any) -> Any:
        """As in `transformers`; the table of code positions is written as long as the authors' class has it."""
        state = dict(self.state_dict() if state_dict is None else state_dict)
        if CODE_POSITIONS in state:
            state[CODE_POSITIONS] = code_positions(state[CODE_POSITIONS], self.config.network().code_window)
        return super().save_pretrained(save_directory, *args, state_dict=state, **options)

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Puts another token table in; `tie_weights` hands it to the output."""
        self.encoder.embed_tokens = self.decoder.embed_tokens = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        """The output projection, tied to the token table."""
        return self.decoder.output_projection

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Puts another output projection in."""
        self.decoder.output_projection = new_embeddings  # type: ignore[assignment]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        patch_images: Tensor | None = None,
        patch_images_2: Tensor | None = None,
        patch_masks: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        code_masks: Tensor | None = None,
        encoder_outputs: OFAOutput | tuple[Tensor, ...] | None = None,
        past_key_values: OFAHFCache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        cache: OFAHFCache | None = None,
    ) -> Seq2SeqLMOutput:
        """Logits of the next token at each decoder position.

        Args:
            input_ids: (B, L), right-padded with 1; padding needs no mask. patch_images, patch_images_2: (B, 3, R, R').
            patch_masks: (B,), False = the sample has no image; all True when absent.
            decoder_input_ids: (B * G, T), beginning with bos; with `past_key_values` the new ones only. Without them
                `labels` moved right by one.
            code_masks: (B * G,), True = image codes. encoder_outputs: what `get_encoder()` returned for the inputs
                above, in their place.
            past_key_values: what an earlier call returned. use_cache: whether to return one; config.use_cache when
                absent, but never with labels.
            labels: (B * G, T), -100 is not counted. cache: the name of `past_key_values` since `transformers` 5.24.

        Returns:
            loss (mean over counted labels, or None), logits (B * G, T, V), past_key_values (`cache` since 5.24).

        Raises:
            ValueError: nothing to decode, a foreign cache or two, text and codes in one batch with a cache, too long
                inputs.
        """
        if cache is not None and past_key_values is not None:
            raise ValueError("past_key_values and cache are two names of the same argument: pass one.")
        cache = past_key_values if cache is None else cache
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("decoder_input_ids are missing: pass them, or labels, or call generate().")
            decoder_input_ids = self._shifted(labels)
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("input_ids or encoder_outputs are needed.")
            encoder_outputs = _GenerationEncoder(self)(input_ids, patch_images, patch_images_2, patch_masks)
        enc = _encoded(encoder_outputs)
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and not self.training
        if cache is None and not use_cache:
            logits = self.decode(decoder_input_ids, enc, code_masks)
        else:
            cache = self._cache(cache, enc, decoder_input_ids.size(0), code_masks)
            logits = self.project(cache.step(decoder_input_ids))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        state: dict[str, Any] = {CACHE_NAME: cache}
        return Seq2SeqLMOutput(loss=loss, logits=logits, encoder_last_hidden_state=enc.out, **state)

    def _shifted(self, labels: Tensor) -> Tensor:
        """Labels (B, T) -> decoder inputs: bos, then all labels but the last; -100 becomes padding."""
        start = labels.new_full((labels.size(0), 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    def _cache(self, past: OFAHFCache | None, enc: EncoderOutput, rows: int, code_masks: Tensor | None) -> OFAHFCache:
        if past is None:
            code = code_masks is not None and bool(code_masks.any())
            if code and not bool(cast(Tensor, code_masks).all()):
                raise ValueError("A batch of texts and image codes has no cache: pass use_cache=False or two batches.")
            return OFAHFCache(self.decoder, enc, rows // enc.out.size(0), code)
        if not isinstance(past, OFAHFCache):
            raise ValueError(f"The cache is a {type(past).__name__}: pass what an earlier call of OFA returned.")
        return past

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Inputs of `forward` up to patch_masks -> `OFAOutput`, which `forward` takes as `encoder_outputs`."""
        return _GenerationEncoder(self)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes its own cache, which knows the encoder's output

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeats what belongs to rows; what belongs to samples is shared by a sample's rows and stays as it is."""
        enc = model_kwargs.pop("encoder_outputs")
        for name in ENCODER_INPUTS:  # all but src_tokens, which `transformers` calls input_ids
            model_kwargs.pop(name, None)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size, False, input_ids, **model_kwargs)
        return cast(Tensor, input_ids), {**model_kwargs, "encoder_outputs": enc}


# Here and not where the classes are registered: a folder that carries its own code has this file only.
register_checkpoint_conversion_mapping(OFAHFConfig.model_type, weight_renamings(), overwrite=True)
