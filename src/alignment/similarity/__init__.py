"""How alike two spaces are in which the same rows were represented."""

from .calibration import CalibratedScore, calibrated
from .cka import (
    LinearCka,
    RbfCka,
    linear_cka,
    minibatch_cka,
    rbf_cka,
)
from .comparison import LayerComparison, LayerMeasure, Layers
from .coverage import Coverage, coverage
from .fingerprint import LayerFingerprint
from .gromov_wasserstein import GromovWasserstein, gromov_wasserstein
from .identification import LayerIdentification, layer_identification
from .layer_map import LayerMap, layer_map
from .neighbours import Jaccard, MutualKnn, jaccard, mutual_knn
from .rsa import Rsa, rsa
from .svcca import Svcca, svcca

__all__ = [
    "CalibratedScore",
    "Coverage",
    "GromovWasserstein",
    "Jaccard",
    "LayerComparison",
    "LayerFingerprint",
    "LayerIdentification",
    "LayerMap",
    "LayerMeasure",
    "Layers",
    "LinearCka",
    "MutualKnn",
    "RbfCka",
    "Rsa",
    "Svcca",
    "calibrated",
    "coverage",
    "gromov_wasserstein",
    "jaccard",
    "layer_identification",
    "layer_map",
    "linear_cka",
    "minibatch_cka",
    "mutual_knn",
    "rbf_cka",
    "rsa",
    "svcca",
]
