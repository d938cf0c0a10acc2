"""OFA for Hugging Face `transformers`; importing this package registers it with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    AutoTokenizer,
)

from models.hf.config import OFAHFConfig
from models.hf.model import OFAForConditionalGeneration, OFAHFCache, OFAOutput
from models.hf.processing import OFAImageProcessor, OFAProcessor, OFATokenizer

__all__ = [
    "OFAForConditionalGeneration",
    "OFAHFCache",
    "OFAHFConfig",
    "OFAImageProcessor",
    "OFAOutput",
    "OFAProcessor",
    "OFATokenizer",
]

AutoConfig.register(OFAHFConfig.model_type, OFAHFConfig)
for _auto in (AutoModel, AutoModelForSeq2SeqLM, AutoModelForImageTextToText):
    _auto.register(OFAHFConfig, OFAForConditionalGeneration)
AutoTokenizer.register(OFAHFConfig, OFATokenizer)
AutoImageProcessor.register(
    OFAHFConfig, image_processor_classes=dict.fromkeys(("torchvision", "pil"), OFAImageProcessor)
)
AutoProcessor.register(OFAHFConfig, OFAProcessor)
