import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from loraport.alignment.similarity import (
    LinearCka,
    RbfCka,
    linear_cka,
    minibatch_cka,
    rbf_cka,
)
from loraport.alignment.similarity.cka import linear_gram, unbiased_hsic


def gaussian(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def related(rows: int = 60) -> tuple[Tensor, Tensor]:
    """Two spaces of different widths that share half of what they hold, away from the origin."""
    x = gaussian(rows, 12, 0)
    y = torch.cat([x[:, :6] @ gaussian(6, 9, 1), gaussian(rows, 9, 2)], dim=1)
    return 3 + x, y - 5


def turned(x: Tensor) -> Tensor:
    return 7 * x @ torch.linalg.qr(gaussian(x.shape[1], x.shape[1], 9)).Q - 2


def naive_unbiased(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """Song et al., 2012, eq. 5, as printed."""
    n, one = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    trace = np.trace(k @ l)
    sums = one @ k @ one * (one @ l @ one) / ((n - 1) * (n - 2))
    return float(trace + sums - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))


def naive_cka(hsic, k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    return hsic(k, l) / (hsic(k, k) * hsic(l, l)) ** 0.5


def test_hsic_as_printed():
    x, y = related()
    k, l = linear_gram(x), linear_gram(y)  # noqa: E741
    assert unbiased_hsic(k, l) == pytest.approx(naive_unbiased(k.numpy(), l.numpy()))
    # It does not depend on whether the Gram matrix was centred before.
    raw = (x @ x.mT).numpy()
    assert unbiased_hsic(k, l) == pytest.approx(naive_unbiased(raw, (y @ y.mT).numpy()))


def test_cka_against_explicit_centring_matrices():
    x, y = related()
    k, l = (x @ x.mT).numpy(), (y @ y.mT).numpy()  # noqa: E741
    assert linear_cka(x, y) == pytest.approx(naive_cka(naive_unbiased, k, l))


@pytest.mark.parametrize("bandwidth", [0.5, 1.0])
def test_rbf_cka_against_scipy_distances(bandwidth):
    x, y = related(31)
    grams = []
    for space in (x.numpy(), y.numpy()):
        distances = pdist(space)
        # An odd number of distances: torch takes the lower of two middle ones, numpy their mean.
        sigma = bandwidth * np.median(distances)
        grams.append(np.exp(-(squareform(distances) ** 2) / (2 * sigma**2)))
    assert len(distances) % 2
    assert rbf_cka(x, y, bandwidth) == pytest.approx(naive_cka(naive_unbiased, *grams))


def test_wide_rbf_is_linear():
    x, y = related()
    assert rbf_cka(x, y, 100.0) == pytest.approx(linear_cka(x, y), abs=1e-3)
    assert abs(rbf_cka(x, y, 0.5) - linear_cka(x, y)) > 1e-2


@pytest.mark.parametrize("measure", [linear_cka, rbf_cka])
def test_rotated_scaled_and_moved_space_is_the_same(measure):
    x, y = related()
    assert measure(x, turned(x)) == pytest.approx(1)
    assert measure(x, turned(y)) == pytest.approx(measure(x, y))
    assert measure(x, y) == pytest.approx(measure(y, x))
    assert 0.1 < measure(x, y) < 0.9


def test_minibatches_average_before_they_divide():
    x, y = related(60)
    batches = [(x[:20], y[:20]), (x[20:35], y[20:35]), (x[35:], y[35:])]
    grams = [((a @ a.mT).numpy(), (b @ b.mT).numpy()) for a, b in batches]
    both, one, other = (
        np.mean([naive_unbiased(pair[i], pair[j]) for pair in grams])
        for i, j in ((0, 1), (0, 0), (1, 1))
    )
    assert minibatch_cka(batches) == pytest.approx(both / (one * other) ** 0.5)
    assert minibatch_cka([(x, y)]) == pytest.approx(linear_cka(x, y))


# docs of the design: independent Gaussians of 896 and 2048 dimensions.
# Biased CKA, as first published, says .96, .81 and .56 there.
@pytest.mark.parametrize("rows", [50, 300, 1000])
def test_independent_spaces_do_not_look_alike(rows):
    x, y = gaussian(rows, 896, 1).float(), gaussian(rows, 2048, 2).float()
    assert abs(linear_cka(x, y)) < 0.05


def test_one_outlying_row_does_not_make_it_one():
    x, y = gaussian(100, 30, 1), gaussian(100, 40, 2)
    x[0], y[0] = 1000, 1000
    assert linear_cka(x, y) < 0.3


def test_constant_space_is_like_nothing():
    x, constant = gaussian(20, 5, 1), torch.ones(20, 4)
    assert linear_cka(x, constant) == rbf_cka(x, constant) == 0
    with pytest.raises(ValueError, match="3 rows are too few"):
        linear_cka(x[:3], x[:3])


@pytest.mark.parametrize(("measure", "function"), [(LinearCka(), linear_cka), (RbfCka(), rbf_cka)])
def test_all_layers_at_once_with_rows_in_any_order(measure, function):
    target, source = [*related(), gaussian(60, 5, 3)], [related()[1], gaussian(60, 7, 4)]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    found = measure.compare(target, source).matrix(order)
    expected = [[function(x[order], y) for y in source] for x in target]
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-6, rtol=0)
