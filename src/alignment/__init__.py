"""Mathematics on matrices alone: regressions, decompositions, matchings, similarities."""

from .layer_matching import relative_depth
from .ridge import choose_strength, leave_one_out_errors, ridge_coefficients
from .svd import PrincipalScores, TruncatedSvd, randomised_svd

__all__ = [
    "PrincipalScores",
    "TruncatedSvd",
    "choose_strength",
    "leave_one_out_errors",
    "randomised_svd",
    "relative_depth",
    "ridge_coefficients",
]
