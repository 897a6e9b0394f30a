"""In which dtype two base models teach and learn."""

import torch

from ..alignment.matrix_units import has_matrix_units
from ..exceptions import ConfigurationError
from .base import BaseModel
from .sources import DTYPES

# Smaller networks spend their time elsewhere than in products.
_LARGE = 50_000_000


def learning_dtype(name: str, base: BaseModel) -> torch.dtype:
    """Return the dtype that a name stands for.

    Args:
        name: ``float32``, ``bfloat16``, ``float16``, or ``auto``: bfloat16 for networks of 50
            million parameters and more where the processor has matrix units for it, which makes
            training about twice as fast; else as the network is.
        base: The model.

    Raises:
        ConfigurationError: there is no such dtype.
    """
    if name == "auto":
        network = base.network
        units = has_matrix_units(network.device)
        large = network.num_parameters() >= _LARGE
        return torch.bfloat16 if units and large else network.dtype
    if name not in DTYPES:
        raise ConfigurationError(
            f"refine_dtype is {name!r}; it takes auto or one of {', '.join(DTYPES)}"
        )
    return DTYPES[name]
