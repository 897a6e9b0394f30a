"""LoRA adapters as values: sites, low-rank algebra, PEFT folders in and out."""

from .lora import LoraAdapter, LowRank, Role, Site, Truncation, cosine, relative_error, stacked
from .peft_io import peft_config, read_adapter, write_adapter
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
