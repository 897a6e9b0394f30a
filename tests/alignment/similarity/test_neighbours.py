import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from loraport.alignment.similarity import Jaccard, MutualKnn, jaccard, mutual_knn
from loraport.alignment.similarity.neighbours import nearest, prepared


def gaussian(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def related() -> tuple[Tensor, Tensor]:
    x = gaussian(80, 6, 0)
    return x, x @ gaussian(6, 9, 1) + gaussian(80, 9, 2)


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
    x, y = related()
    pairs = list(zip(sets(x, k), sets(y, k), strict=True))
    expected = np.mean([len(a & b) / k for a, b in pairs])
    assert mutual_knn(x, y, k) == pytest.approx(expected)
    assert jaccard(x, y, k) == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs]))
    assert k == 79 or 0 < expected < 0.9


def test_same_neighbours_in_the_same_space_under_a_rotation():
    x = torch.nn.functional.normalize(gaussian(100, 20, 0), dim=1)
    turned = 3 * x @ torch.linalg.qr(gaussian(20, 20, 1)).Q
    # Clamping looks at single coordinates, so that a few neighbours change.
    assert mutual_knn(x, x) == jaccard(x, x) == 1
    assert mutual_knn(x, turned) > 0.8


@pytest.mark.parametrize("rows", [50, 300, 1000])
def test_independent_spaces_share_as_many_as_chance(rows):
    found = mutual_knn(gaussian(rows, 90, 1), gaussian(rows, 200, 2))
    chance = 10 / (rows - 1)
    assert abs(found - chance) < 4 * (chance / (10 * rows)) ** 0.5


def test_rogue_dimension_is_clamped():
    x = gaussian(60, 40, 0)
    rogue = torch.cat([x, 1000 * gaussian(60, 1, 5)], dim=1)
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
    assert nearest(gaussian(30, 4, 0), 7).sum(dim=1).tolist() == [7] * 30


@pytest.mark.parametrize("k", [0, 20, 30])
def test_more_neighbours_than_other_rows_are_refused(k):
    with pytest.raises(ValueError, match=f"20 rows have no {k} neighbours"):
        mutual_knn(gaussian(20, 4, 0), gaussian(20, 4, 0), k)


@pytest.mark.parametrize(
    ("measure", "function"), [(MutualKnn(5), mutual_knn), (Jaccard(5), jaccard)]
)
def test_all_layers_at_once_with_rows_in_any_order(measure, function):
    target, source = [*related(), gaussian(80, 5, 3)], [related()[1], gaussian(80, 7, 4)]
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    found = measure.compare(target, source).matrix(order)
    expected = [[function(x[order], y, 5) for y in source] for x in target]
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_layers_of_other_rows_are_refused():
    with pytest.raises(ValueError, match=r"\[20, 21\]"):
        MutualKnn().compare([gaussian(20, 4, 0)], [gaussian(21, 4, 0)])
    with pytest.raises(ValueError, match="10 rows are too few"):
        MutualKnn().compare([gaussian(10, 4, 0)], [gaussian(10, 4, 0)])
