"""Whether products of bfloat16 matrices are quicker than those of float32."""

import torch


def has_matrix_units(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 in hardware made for it.

    Of processors those with AMX; torch says so under a private name only.
    """
    return device.type == "cuda" or bool(torch.cpu._is_amx_tile_supported())
