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
    LayerMeasure,
    LinearCka,
    MutualKnn,
    RbfCka,
    Rsa,
    Svcca,
    nearest,
    prepared,
)


def gaussian(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def related(rows: int = 120) -> tuple[Tensor, Tensor]:
    """Three directions in common, with more variance than the rest, away from the origin."""
    shared, scales = gaussian(rows, 3, 0), torch.tensor([9.0, 7.0, 5.0])
    noisy = shared + torch.tensor([0.1, 0.7, 3.0]) * gaussian(rows, 3, 3)
    x = torch.cat([shared * scales, gaussian(rows, 7, 1)], dim=1)
    return x + 3, torch.cat([noisy * scales, gaussian(rows, 9, 2)], dim=1) - 4


def of_pair(measure: LayerMeasure, x: Tensor, y: Tensor) -> float:
    return float(measure.compare([x], [y])(torch.arange(len(x))))


# Every measure once more, by numpy, scipy and scikit-learn.


def naive_hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """Song et al., 2012, eq. 5, as printed."""
    n, one = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    sums = one @ k @ one * (one @ l @ one) / ((n - 1) * (n - 2))
    return float(np.trace(k @ l) + sums - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))


def naive_cka(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    return naive_hsic(k, l) / (naive_hsic(k, k) * naive_hsic(l, l)) ** 0.5


def naive_linear_cka(x: Tensor, y: Tensor) -> float:
    return naive_cka((x @ x.mT).numpy(), (y @ y.mT).numpy())


def naive_rbf_cka(x: Tensor, y: Tensor, bandwidth: float = 0.5) -> float:
    grams = []
    for space in (x.numpy(), y.numpy()):
        distances = np.sort(pdist(space))
        # torch takes the lower of two middle values, numpy their mean.
        sigma = bandwidth * distances[(len(distances) - 1) // 2]
        grams.append(np.exp(-(squareform(pdist(space)) ** 2) / (2 * sigma**2)))
    return naive_cka(*grams)


def neighbour_sets(x: Tensor, neighbours: int) -> list[set[int]]:
    values = x.double().numpy()
    limit = np.quantile(np.abs(values), 0.95, axis=1).mean()
    values = values.clip(-limit, limit)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    finder = NearestNeighbors(n_neighbors=neighbours, metric="cosine").fit(values)
    return [set(row) for row in finder.kneighbors(return_distance=False)]


def naive_mutual_knn(x: Tensor, y: Tensor, k: int = 5) -> float:
    pairs = zip(neighbour_sets(x, k), neighbour_sets(y, k), strict=True)
    return float(np.mean([len(a & b) / k for a, b in pairs]))


def naive_jaccard(x: Tensor, y: Tensor, k: int = 5) -> float:
    pairs = zip(neighbour_sets(x, k), neighbour_sets(y, k), strict=True)
    return float(np.mean([len(a & b) / len(a | b) for a, b in pairs]))


def naive_rsa(x: Tensor, y: Tensor) -> float:
    i, j = np.triu_indices(len(x), 1)
    return float(spearmanr(*[1 - np.corrcoef(s.numpy())[i, j] for s in (x, y)]).statistic)


def naive_svcca(x: Tensor, y: Tensor, components: int = 3) -> float:
    scores = [PCA(components, svd_solver="full").fit_transform(s.numpy()) for s in (x, y)]
    half, found = len(x) // 2, []
    for train, test in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        cca = CCA(components, max_iter=5000, tol=1e-12).fit(scores[0][train], scores[1][train])
        a, b = cca.transform(scores[0][test], scores[1][test])
        found += [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(components)]
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("measure", "naive"),
    [
        (LinearCka(), naive_linear_cka),
        (RbfCka(0.5), naive_rbf_cka),
        (MutualKnn(5), naive_mutual_knn),
        (Jaccard(5), naive_jaccard),
        (Rsa(), naive_rsa),
        (Svcca(3), naive_svcca),
    ],
    ids=["linear_cka", "rbf_cka", "mutual_knn", "jaccard", "rsa", "svcca"],
)
def test_all_layers_with_rows_in_any_order_are_as_other_libraries_say(measure, naive):
    x, y = related()
    target, source = [x, y, gaussian(120, 5, 3)], [y, gaussian(120, 7, 4)]
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    compared = measure.compare(target, source)
    for rows, shuffled in ((torch.arange(120), target), (order, [z[order] for z in target])):
        expected = torch.tensor([[naive(one, other) for other in source] for one in shuffled])
        torch.testing.assert_close(compared(rows), expected.double(), atol=1e-4, rtol=0)
    assert 0.05 < of_pair(measure, x, y) < 0.95
    assert of_pair(measure, y, x) == pytest.approx(of_pair(measure, x, y), abs=1e-6)
    assert of_pair(measure, x, x) == pytest.approx(1, abs=1e-5)


# Where biased CKA, as first published, says .96 and .81.
@pytest.mark.parametrize("rows", [50, 300])
@pytest.mark.parametrize(
    "measure", [LinearCka(), RbfCka(), MutualKnn(), Rsa(), Svcca()], ids=lambda m: m.name
)
def test_independent_spaces_are_alike_by_chance_alone(rows, measure):
    chance = 10 / (rows - 1) if isinstance(measure, MutualKnn) else 0
    noise = {
        "mutual_knn": 4 * (10 / (rows - 1) / (10 * rows)) ** 0.5,
        "svcca": 3 / rows**0.5,
        "rsa": 0.1,
    }
    found = of_pair(measure, gaussian(rows, 450, 1), gaussian(rows, 1000, 2))
    assert abs(found - chance) < noise.get(measure.name, 0.05)


@pytest.mark.parametrize("rows", [(20, 21), (3, 3)])
@pytest.mark.parametrize("measure", [LinearCka(), MutualKnn(3), Svcca(1)])
def test_layers_of_other_or_too_few_rows_are_refused(rows, measure):
    one, other = (gaussian(count, 4, 0) for count in rows)
    message = r"\[20, 21\]" if rows[0] == 20 else "3 rows are too few"
    with pytest.raises(ValueError, match=message):
        measure.compare([one], [other])


class TestCka:
    @pytest.mark.parametrize("measure", [LinearCka(), RbfCka()])
    def test_rotated_scaled_and_moved_space_is_the_same(self, measure):
        x, y = related()
        turned = 7 * y @ torch.linalg.qr(gaussian(12, 12, 9)).Q - 2
        assert of_pair(measure, x, turned) == pytest.approx(of_pair(measure, x, y), abs=1e-5)

    def test_one_outlying_row_does_not_make_it_one(self):
        x, y = gaussian(100, 30, 1), gaussian(100, 40, 2)
        x[0], y[0] = 1000, 1000
        assert of_pair(LinearCka(), x, y) < 0.3

    @pytest.mark.parametrize("measure", [LinearCka(), RbfCka()])
    def test_constant_space_is_like_nothing(self, measure):
        assert of_pair(measure, gaussian(20, 5, 1), torch.ones(20, 4)) == 0


class TestNeighbours:
    @pytest.mark.parametrize("k", [1, 79])
    def test_any_number_of_neighbours(self, k):
        x, y = related(80)
        assert of_pair(MutualKnn(k), x, y) == pytest.approx(naive_mutual_knn(x, y, k))
        assert of_pair(Jaccard(k), x, y) == pytest.approx(naive_jaccard(x, y, k))

    def test_rogue_dimension_is_clamped(self):
        x = gaussian(60, 40, 0)
        rogue = torch.cat([x, 1000 * gaussian(60, 1, 5)], dim=1)
        unclamped = torch.nn.functional.normalize(rogue, dim=1)
        nearest_unclamped = (unclamped @ unclamped.mT).fill_diagonal_(-2).topk(10).indices
        shared = nearest(x, 10).gather(1, nearest_unclamped).double().mean()
        assert float(shared) < 0.35 < 0.45 < of_pair(MutualKnn(), x, rogue)
        assert float(prepared(rogue)[:, -1].abs().max()) < 0.5

    def test_equally_near_rows_are_taken_in_order_and_never_the_row_itself(self):
        found = nearest(torch.ones(6, 3), 2)
        assert [row.nonzero()[:, 0].tolist() for row in found] == [
            [1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]
        ]  # fmt: skip
        assert nearest(gaussian(30, 4, 0), 7).sum(dim=1).tolist() == [7] * 30

    @pytest.mark.parametrize("k", [0, 20])
    def test_more_neighbours_than_other_rows_are_refused(self, k):
        with pytest.raises(ValueError, match=f"20 rows have no {k} neighbours"):
            nearest(gaussian(20, 4, 0), k)


def test_equal_dissimilarities_share_their_rank():
    # Rows that occur twice, exactly; small integers, so that rounding breaks no tie.
    x, y = related(40)
    x = torch.cat([x[:20], x[:20]]).round()
    assert of_pair(Rsa(), x, y) == pytest.approx(naive_rsa(x, y), abs=1e-4)
    assert of_pair(Rsa(), x, torch.ones(40, 3)) == 0


class TestSvcca:
    def test_any_invertible_map_of_the_components_changes_nothing(self):
        x = gaussian(100, 6, 0)
        assert of_pair(Svcca(6), x, x @ gaussian(6, 6, 1) + 3) == pytest.approx(1)

    def test_direction_without_variance_counts_as_uncorrelated(self):
        flat = torch.cat([gaussian(100, 3, 0), torch.zeros(100, 3)], dim=1)
        assert of_pair(Svcca(6), flat, flat) == pytest.approx(0.5)

    def test_too_few_dimensions_are_refused(self):
        with pytest.raises(ValueError, match=r"\(50, 4\) has no 10 components"):
            of_pair(Svcca(), gaussian(50, 4, 0), gaussian(50, 20, 0))


class TestFingerprint:
    def test_numbers_by_hand(self):
        x = 2 + gaussian(40, 6, 0)
        found = LayerFingerprint.of(x)
        values = np.linalg.eigvalsh(np.cov(x.mT.numpy()))
        assert found.dimensions == pytest.approx(values.sum() ** 2 / (values**2).sum())
        distances = cdist(x.numpy(), x.numpy(), "cosine")
        assert found.anisotropy == pytest.approx(1 - distances.sum() / (40 * 39))
        assert found.norm == pytest.approx(float(x.norm(dim=1).mean()))
        lengths = cdist(x.numpy(), x.numpy()).sum(axis=1)
        np.testing.assert_allclose(found.distances.numpy(), lengths / lengths.mean(), rtol=1e-6)

    def test_equal_rows_have_no_dimensions(self):
        found = LayerFingerprint.of(torch.ones(5, 3))
        assert found.dimensions == 0
        assert found.anisotropy == pytest.approx(1)
        assert found.distances.tolist() == [0] * 5
