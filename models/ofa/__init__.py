"""The OFA network in plain PyTorch."""

from models.ofa.config import OFAConfig
from models.ofa.model import OFA

__all__ = ["OFA", "OFAConfig"]
