"""Pure mathematics on matrices: ridge regression, principal components, layer pairing."""

from .layer_pairing import relative_depth
from .principal import PrincipalScores
from .ridge import choose_strength, leave_one_out_errors, ridge_coefficients

__all__ = [
    "PrincipalScores",
    "choose_strength",
    "leave_one_out_errors",
    "relative_depth",
    "ridge_coefficients",
]
