"""LoRA adapters as values: sites, low-rank algebra, PEFT folders in and out."""

from .adapter import LoraAdapter, cosine, relative_error
from .low_rank import LowRank, Truncation, stacked
from .peft_folder import peft_config, read_adapter, write_adapter
from .sites import Role, Site
from .stack import AdapterStack, StackedSite

__all__ = [
    "AdapterStack",
    "LoraAdapter",
    "LowRank",
    "Role",
    "Site",
    "StackedSite",
    "Truncation",
    "cosine",
    "peft_config",
    "read_adapter",
    "relative_error",
    "stacked",
    "write_adapter",
]
