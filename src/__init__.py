"""Port LoRA adapters from one base language model to another.

The commands are the main way in; for notebooks and services there are these names. Nothing heavy
is imported before one of them is used. See :mod:`loraport.api` for a worked example.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters.peft_io import read_adapter as read_adapter
    from .api import choose_mapper as choose_mapper
    from .api import open_model as open_model
    from .api import port as port
    from .api import save as save
    from .mappers.base import load_mapper as load_mapper
    from .mappers.cartridge import load_cartridge as load_cartridge
    from .models.verify import verify as verify

__all__ = [
    "choose_mapper",
    "load_cartridge",
    "load_mapper",
    "open_model",
    "port",
    "read_adapter",
    "save",
    "verify",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of the module's

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(".api", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
