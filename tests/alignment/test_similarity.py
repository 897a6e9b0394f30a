import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist, squareform
from scipy.stats import spearmanr
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from loraport.alignment.similarity import (
    Jaccard,
    LayerFingerprint,
    LinearCka,
    MutualKnn,
    RbfCka,
    Rsa,
    Svcca,
    jaccard,
    linear_cka,
    linear_gram,
    minibatch_cka,
    mutual_knn,
    nearest,
    prepared,
    rbf_cka,
    rsa,
    svcca,
    unbiased_hsic,
)


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


def gaussian_neighbours(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def related_neighbours() -> tuple[Tensor, Tensor]:
    x = gaussian_neighbours(80, 6, 0)
    return x, x @ gaussian_neighbours(6, 9, 1) + gaussian_neighbours(80, 9, 2)


def sets(x: Tensor, neighbours: int) -> list[set[int]]:
    """The nearest neighbours by scikit-learn, of features prepared by hand."""
    values = x.double().numpy()
    limit = np.quantile(np.abs(values), 0.95, axis=1).mean()
    values = values.clip(-limit, limit)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    finder = NearestNeighbors(n_neighbors=neighbours, metric="cosine").fit(values)
    return [set(row) for row in finder.kneighbors(return_distance=False)]


@pytest.mark.parametrize("k", [1, 5, 79])
def test_overlaps_against_scikit_learn(k):
    x, y = related_neighbours()
    pairs = list(zip(sets(x, k), sets(y, k), strict=True))
    expected = np.mean([len(a & b) / k for a, b in pairs])
    assert mutual_knn(x, y, k) == pytest.approx(expected)
    assert jaccard(x, y, k) == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs]))
    assert k == 79 or 0 < expected < 0.9


def test_same_neighbours_in_the_same_space_under_a_rotation():
    x = torch.nn.functional.normalize(gaussian_neighbours(100, 20, 0), dim=1)
    turned = 3 * x @ torch.linalg.qr(gaussian_neighbours(20, 20, 1)).Q
    # Clamping looks at single coordinates, so that a few neighbours change.
    assert mutual_knn(x, x) == jaccard(x, x) == 1
    assert mutual_knn(x, turned) > 0.8


@pytest.mark.parametrize("rows", [50, 300, 1000])
def test_independent_spaces_share_as_many_as_chance(rows):
    found = mutual_knn(gaussian_neighbours(rows, 90, 1), gaussian_neighbours(rows, 200, 2))
    chance = 10 / (rows - 1)
    assert abs(found - chance) < 4 * (chance / (10 * rows)) ** 0.5


def test_rogue_dimension_is_clamped():
    x = gaussian_neighbours(60, 40, 0)
    rogue = torch.cat([x, 1000 * gaussian_neighbours(60, 1, 5)], dim=1)
    unclamped = torch.nn.functional.normalize(rogue, dim=1)
    nearest_unclamped = (unclamped @ unclamped.mT).fill_diagonal_(-2).topk(10).indices
    shared = nearest(x, 10).gather(1, nearest_unclamped).double().mean()
    assert float(shared) < 0.35 < 0.45 < mutual_knn(x, rogue)
    assert float(prepared(rogue)[:, -1].abs().max()) < 0.5


def test_equally_near_rows_are_taken_in_order_and_never_the_row_itself():
    x = torch.ones(6, 3)
    found = nearest(x, 2)
    assert [row.nonzero()[:, 0].tolist() for row in found] == [
        [1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]
    ]  # fmt: skip
    assert nearest(gaussian_neighbours(30, 4, 0), 7).sum(dim=1).tolist() == [7] * 30


@pytest.mark.parametrize("k", [0, 20, 30])
def test_more_neighbours_than_other_rows_are_refused(k):
    with pytest.raises(ValueError, match=f"20 rows have no {k} neighbours"):
        mutual_knn(gaussian_neighbours(20, 4, 0), gaussian_neighbours(20, 4, 0), k)


@pytest.mark.parametrize(
    ("measure", "function"), [(MutualKnn(5), mutual_knn), (Jaccard(5), jaccard)]
)
def test_all_layers_at_once_with_rows_in_any_order_neighbours(measure, function):
    target, source = (
        [*related_neighbours(), gaussian_neighbours(80, 5, 3)],
        [related_neighbours()[1], gaussian_neighbours(80, 7, 4)],
    )
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    found = measure.compare(target, source).matrix(order)
    expected = [[function(x[order], y, 5) for y in source] for x in target]
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_layers_of_other_rows_are_refused():
    with pytest.raises(ValueError, match=r"\[20, 21\]"):
        MutualKnn().compare([gaussian_neighbours(20, 4, 0)], [gaussian_neighbours(21, 4, 0)])
    with pytest.raises(ValueError, match="10 rows are too few"):
        MutualKnn().compare([gaussian_neighbours(10, 4, 0)], [gaussian_neighbours(10, 4, 0)])


def gaussian_rsa(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def naive(x: Tensor, y: Tensor) -> float:
    i, j = np.triu_indices(len(x), 1)
    rdms = [1 - np.corrcoef(space.double().numpy())[i, j] for space in (x, y)]
    return float(spearmanr(*rdms).statistic)


def related_rsa() -> tuple[Tensor, Tensor]:
    x = gaussian_rsa(40, 8, 0)
    return x, x @ gaussian_rsa(8, 11, 1)


def test_against_numpy_and_scipy():
    x, y = related_rsa()
    assert rsa(x, y) == pytest.approx(naive(x, y), abs=1e-6)
    assert 0.2 < rsa(x, y) < 0.95


def test_equal_dissimilarities_share_their_rank():
    x, y = related_rsa()
    # Rows that occur twice, exactly; small integers, so that rounding breaks no tie.
    x = torch.cat([x[:20], x[:20]]).mul(4).round()
    assert rsa(x, y) == pytest.approx(naive(x, y), abs=1e-4)


def test_what_does_not_change_correlations_changes_nothing():
    x, _ = related_rsa()
    assert rsa(x, 3 * x + 2) == pytest.approx(1)
    assert rsa(x, torch.ones(40, 3)) == 0


@pytest.mark.parametrize("rows", [50, 300])
def test_independent_spaces_are_near_zero(rows):
    assert abs(rsa(gaussian_rsa(rows, 90, 1), gaussian_rsa(rows, 200, 2))) < 0.1


def test_all_layers_at_once_with_rows_in_any_order_rsa():
    target, source = (
        [*related_rsa(), gaussian_rsa(40, 5, 3)],
        [related_rsa()[1], gaussian_rsa(40, 7, 4)],
    )
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    found = Rsa().compare(target, source).matrix(order)
    expected = [[naive(x[order], y) for y in source] for x in target]
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-6, rtol=0)


def gaussian_svcca(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double()


def related_svcca() -> tuple[Tensor, Tensor]:
    """Three directions in common, with more variance than the rest."""
    shared = gaussian_svcca(120, 3, 0)
    scales = torch.tensor([9.0, 7.0, 5.0])
    x = torch.cat([shared * scales, gaussian_svcca(120, 7, 1)], dim=1)
    noisy = shared + torch.tensor([0.1, 0.7, 3.0]) * gaussian_svcca(120, 3, 3)
    y = torch.cat([noisy * scales, gaussian_svcca(120, 9, 2)], dim=1)
    return x, y + 4


def naive_svcca(x: Tensor, y: Tensor, components: int) -> float:
    scores = [PCA(components, svd_solver="full").fit_transform(s.numpy()) for s in (x, y)]
    half, found = len(x) // 2, []
    for train, test in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        cca = CCA(components, max_iter=5000, tol=1e-12).fit(scores[0][train], scores[1][train])
        a, b = cca.transform(scores[0][test], scores[1][test])
        found += [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(components)]
    return float(np.mean(found))


def test_against_scikit_learn():
    x, y = related_svcca()
    assert svcca(x, y, 3) == pytest.approx(naive_svcca(x, y, 3), abs=1e-4)
    assert 0.4 < svcca(x, y, 3) < 0.9


def test_any_invertible_map_of_the_components_changes_nothing():
    x = gaussian_svcca(100, 6, 0)
    assert svcca(x, x @ gaussian_svcca(6, 6, 1) + 3, 6) == pytest.approx(1)


@pytest.mark.parametrize("rows", [50, 300, 1000])
def test_independent_spaces_are_near_zero_svcca(rows):
    x, y = gaussian_svcca(rows, 90, 1), gaussian_svcca(rows, 200, 2)
    assert abs(svcca(x, y)) < 3 / rows**0.5


def test_direction_without_variance_counts_as_uncorrelated():
    x = gaussian_svcca(100, 6, 0)
    flat = torch.cat([x[:, :3], torch.zeros(100, 3)], dim=1)
    assert svcca(flat, flat, 6) == pytest.approx(0.5)


def test_too_little_is_refused():
    with pytest.raises(ValueError, match="30 rows are too few"):
        svcca(gaussian_svcca(30, 20, 0), gaussian_svcca(30, 20, 0), 10)
    with pytest.raises(ValueError, match=r"\(50, 4\) has no 10 components"):
        svcca(gaussian_svcca(50, 4, 0), gaussian_svcca(50, 20, 0), 10)


def test_all_layers_at_once_with_rows_in_any_order_svcca():
    target, source = (
        [*related_svcca(), gaussian_svcca(120, 5, 3)],
        [related_svcca()[1], gaussian_svcca(120, 7, 4)],
    )
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    found = Svcca(3).compare(target, source).matrix(order)
    expected = [[svcca(x[order], y, 3) for y in source] for x in target]
    torch.testing.assert_close(found, torch.tensor(expected).double())


def gaussian_fingerprint(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double()


def test_numbers_by_hand():
    x = 2 + gaussian_fingerprint(40, 6, 0)
    found = LayerFingerprint.of(x)
    values = np.linalg.eigvalsh(np.cov(x.mT.numpy()))
    assert found.dimensions == pytest.approx(values.sum() ** 2 / (values**2).sum())
    distances = cdist(x.numpy(), x.numpy(), "cosine")
    assert found.anisotropy == pytest.approx(1 - distances.sum() / (40 * 39))
    assert found.norm == pytest.approx(float(x.norm(dim=1).mean()))
    lengths = cdist(x.numpy(), x.numpy()).sum(axis=1)
    np.testing.assert_allclose(found.distances.numpy(), lengths / lengths.mean(), rtol=1e-6)


def test_rotation_leaves_it_alone():
    x = gaussian_fingerprint(30, 6, 0)
    basis = torch.linalg.qr(gaussian_fingerprint(6, 6, 1)).Q
    one, other = LayerFingerprint.of(x), LayerFingerprint.of(x @ basis)
    assert one.dimensions == pytest.approx(other.dimensions)
    assert one.anisotropy == pytest.approx(other.anisotropy)
    torch.testing.assert_close(one.distances, other.distances)


def test_equal_rows_have_no_dimensions_and_one_row_is_refused():
    found = LayerFingerprint.of(torch.ones(5, 3))
    assert found.dimensions == 0
    assert found.anisotropy == pytest.approx(1)
    assert found.distances.tolist() == [0] * 5
    with pytest.raises(ValueError, match="1 rows"):
        LayerFingerprint.of(torch.ones(1, 3))
