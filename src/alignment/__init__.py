"""Pure mathematics on matrices: ridge regression, principal components, layer pairing."""

from .layer_pairing import relative_depth
from .principal import PrincipalScores
from .randomised_svd import TruncatedSvd, randomised_svd
from .ridge import choose_strength, leave_one_out_errors, ridge_coefficients

__all__ = [
    "PrincipalScores",
    "TruncatedSvd",
    "choose_strength",
    "leave_one_out_errors",
    "randomised_svd",
    "relative_depth",
    "ridge_coefficients",
]
