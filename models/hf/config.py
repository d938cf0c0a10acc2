"""config.json of the Hugging Face layout as a `transformers` configuration."""

from dataclasses import asdict, fields
from typing import Any

from transformers import PretrainedConfig

from models.ofa import OFAConfig
from utils.hf_layout import DEFAULTS, to_config, to_options


class OFAHFConfig(PretrainedConfig):
    """Fields and defaults are `utils.hf_layout.DEFAULTS`; options of `OFAConfig` may stand beside them by name."""

    model_type = "ofa"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # before `transformers` 5.24 and since
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }
    # Declared, or `generate` would refuse it as a search option that does not belong here.
    forced_eos_token_id: int | None = None

    def __init__(self, **options: Any) -> None:
        """Any field by name; what is left out has its default."""
        super().__init__(**{"tie_word_embeddings": True, **options})
        for name, default in DEFAULTS.items():
            if name != "model_type":
                setattr(self, name, options.get(name, default))

    @classmethod
    def from_network(cls, config: OFAConfig) -> "OFAHFConfig":
        """The same options in this layout."""
        return cls(**to_config(asdict(config), asdict(OFAConfig())))

    def network(self) -> OFAConfig:
        """The same options for `models.ofa.OFA`; raises ValueError for a model that cannot be built."""
        options = to_options(self.to_dict())
        return OFAConfig(**{f.name: options[f.name] for f in fields(OFAConfig) if f.name in options})
