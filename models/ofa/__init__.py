"""The OFA model in plain PyTorch."""

from models.ofa.config import OFAConfig
from models.ofa.model import OFA

__all__ = ["OFA", "OFAConfig"]
