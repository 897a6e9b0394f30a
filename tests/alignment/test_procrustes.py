import pytest
import scipy.linalg
import scipy.spatial.transform
import torch
from torch import Tensor

from loraport.alignment.moments import PairedMoments
from loraport.alignment.procrustes import AnchorLocks, best_scale, rotation


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Orthonormal along the shorter side."""
    q = torch.linalg.qr(drawn(max(rows, columns), min(rows, columns), seed=seed)).Q
    return q if rows >= columns else q.mT


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_it_is_scipys_solution(noise: float) -> None:
    x = drawn(80, 12)
    y = 3 * x @ orthonormal(12, 12, 1) + noise * drawn(80, 12, seed=2)
    found = rotation(PairedMoments.of(x, y))
    expected, total = scipy.linalg.orthogonal_procrustes(x.numpy(), y.numpy())
    assert torch.allclose(found.matrix, torch.from_numpy(expected), atol=1e-10)
    assert found.scale == pytest.approx(total / float(x.square().sum()))
    assert found.rank == 12


def test_narrow_to_wide_is_recovered_and_optimal() -> None:
    x, planted = drawn(60, 7), orthonormal(7, 11, 1)
    found = rotation(PairedMoments.of(x, x @ planted))
    assert torch.allclose(found.matrix, planted, atol=1e-10)
    noisy = x @ planted + drawn(60, 11, seed=5)
    best = rotation(PairedMoments.of(x, noisy)).matrix
    error = (x @ best - noisy).norm()
    for seed in range(20):
        turn = torch.matrix_exp(0.02 * (g := drawn(11, 11, seed=seed)) - 0.02 * g.mT)
        assert (x @ best @ turn - noisy).norm() > error


def test_wide_to_narrow_keeps_the_principal_components() -> None:
    hidden, reader = drawn(80, 5), orthonormal(5, 12, 1)
    x = 10 * hidden @ reader + 0.1 * drawn(80, 12, seed=4)
    y = hidden @ orthonormal(5, 5, 2)
    moments = PairedMoments.of(x, y)
    found = rotation(moments)
    assert torch.allclose(found.matrix.mT @ found.matrix, torch.eye(5).double(), atol=1e-10)
    assert found.rank == 5
    # What R reads lies in the five leading directions of x alone.
    leading = torch.linalg.svd(x, full_matrices=False).Vh[:5]
    assert torch.allclose(found.matrix, leading.mT @ leading @ found.matrix, atol=1e-8)
    error = (found.scale * x @ found.matrix - y).square().sum() / y.square().sum()
    assert float(error) < 1e-3


@pytest.mark.parametrize(("n", "centre"), [(6, False), (6, True), (1, False)])
def test_fewer_samples_than_dimensions_invent_no_rotation(n: int, centre: bool) -> None:
    x = drawn(n, 20)
    y = x @ orthonormal(20, 20, 1)
    moments = PairedMoments.of(x, y)
    moments = moments.centred() if centre else moments
    found = rotation(moments)
    rank = n - 1 if centre else n
    assert found.rank == rank
    values = torch.linalg.svdvals(found.matrix)
    assert torch.allclose(values[:rank], torch.ones(rank).double())
    assert float(values[rank:].max()) < 1e-10
    seen = x - x.mean(dim=0) if centre else x
    unseen = torch.linalg.svd(seen).Vh[rank:]
    assert float((unseen @ found.matrix).abs().max()) < 1e-8
    assert torch.allclose(seen @ found.matrix, seen @ orthonormal(20, 20, 1), atol=1e-8)


def test_directions_that_never_vary_are_not_turned_whatever_the_samples() -> None:
    # Rounded to float32, as products of activations are: noise must not count as rank.
    x = (drawn(500, 4) @ drawn(4, 20, seed=1)).float()
    y = (x.double() @ orthonormal(20, 20, 2)).float()
    one = PairedMoments.of(x, y)
    found = rotation(PairedMoments(500, one.x_sum, one.y_sum, one.xx, one.yy, (x.mT @ y).double()))
    assert found.rank == 4


def test_reflection_is_undone_on_request_at_least_cost() -> None:
    x = drawn(50, 6)
    mirror = orthonormal(6, 6, 1)
    mirror[:, 0] *= -torch.linalg.det(mirror).sign()
    moments = PairedMoments.of(x, x @ mirror + 0.3 * drawn(50, 6, seed=2))
    free, proper = rotation(moments).matrix, rotation(moments, proper=True).matrix
    assert float(torch.linalg.det(free)) == pytest.approx(-1)
    assert float(torch.linalg.det(proper)) == pytest.approx(1)
    lost = float((moments.xy * (free - proper)).sum())
    assert lost == pytest.approx(2 * float(torch.linalg.svdvals(moments.xy)[-1]))
    # scipy's Kabsch takes vectors of three dimensions.
    three = PairedMoments.of(x[:, :3], drawn(50, 3, seed=7))
    kabsch, _ = scipy.spatial.transform.Rotation.align_vectors(
        drawn(50, 3, seed=7).numpy(), x[:, :3].numpy()
    )
    expected = torch.from_numpy(kabsch.as_matrix()).mT
    assert torch.allclose(rotation(three, proper=True).matrix, expected, atol=1e-8)


def test_scale_is_the_best_one() -> None:
    x, y = drawn(30, 5), drawn(30, 4, seed=1)
    moments, matrix = PairedMoments.of(x, y), drawn(5, 4, seed=2)
    scale = best_scale(moments, matrix)
    expected = torch.linalg.lstsq((x @ matrix).reshape(-1, 1), y.reshape(-1, 1)).solution
    assert scale == pytest.approx(float(expected))
    zero = rotation(PairedMoments.of(torch.zeros(5, 3), torch.zeros(5, 4)))
    assert (zero.rank, zero.scale, bool(zero.matrix.any())) == (0, 0.0, False)


@pytest.mark.parametrize(("wide", "narrow"), [(8, 8), (6, 10), (10, 6)])
@pytest.mark.parametrize("components", [0, 2])
def test_good_pairs_need_no_weights(wide: int, narrow: int, components: int) -> None:
    # Samples of the wider space differ in as many directions as the narrower one has.
    x = drawn(200, min(wide, narrow) - 1) @ orthonormal(min(wide, narrow) - 1, wide, 6) + 5
    planted = orthonormal(wide, narrow, 1)
    if wide > narrow:
        planted = torch.linalg.svd(x, full_matrices=False).Vh[:narrow].mT
    moments = PairedMoments.of(x, x @ planted)
    found = AnchorLocks(components).rotation(moments, x[:40], (x @ planted)[:40])
    assert (found.violated.tolist(), found.rounds) == ([], 0)
    assert torch.allclose(x @ found.rotation.matrix, x @ planted, atol=1e-8)
    assert found.rotation.scale == pytest.approx(1)


def test_locks_win_over_many_samples_that_contradict_them() -> None:
    # 300 samples say "turn by Q", 3 anchors say "mirror": they give way as their weights double.
    x, planted = drawn(300, 12), orthonormal(12, 12, 1)
    a, b = 2 * drawn(3, 12, seed=2), None
    b = -a @ planted
    moments = PairedMoments.of(torch.cat([x, a]), torch.cat([x @ planted, b]))
    plain = rotation(moments).matrix
    assert (((a @ plain) * b).sum(dim=1) <= 0).all()
    found = AnchorLocks(components=0).rotation(moments, a, b)
    assert found.violated.tolist() == []
    assert found.rounds > 0
    assert (((a @ found.rotation.matrix) * b).sum(dim=1) > 0).all()


def test_impossible_locks_are_reported_and_not_forced() -> None:
    x, planted = drawn(300, 6), orthonormal(6, 6, 1)
    a = drawn(2, 6, seed=2)[:1].repeat(2, 1)
    b = torch.stack([a[0] @ planted, -a[0] @ planted])
    moments = PairedMoments.of(torch.cat([x, a]), torch.cat([x @ planted, b]))
    found = AnchorLocks(components=0, rounds=3).rotation(moments, a, b)
    assert len(found.violated) == 1
    assert found.rounds == 3
    assert torch.allclose(torch.linalg.svdvals(found.rotation.matrix), torch.ones(6).double())


def test_a_common_mean_does_not_satisfy_a_lock() -> None:
    x, planted = drawn(400, 6), orthonormal(6, 6, 1)
    x[:, 0] += 100
    y = x @ planted
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    moments = PairedMoments.of(x, y)
    turned = rotation(moments).matrix
    # With the mean in them, all twenty wrong pairs look right.
    assert (((x[:20] @ turned) * y[order]).sum(dim=1) > 0).all()
    found = AnchorLocks(components=0, rounds=0).rotation(moments, x[:20], y[order])
    assert len(found.violated) > 3


def test_reflection_is_undone_last() -> None:
    x = drawn(100, 5) + 1
    mirror = orthonormal(5, 5, 1)
    mirror[:, 0] *= -torch.linalg.det(mirror).sign()
    moments = PairedMoments.of(x, x @ mirror)
    found = AnchorLocks(1).rotation(moments, x[:5], x[:5] @ mirror, proper=True)
    assert float(torch.linalg.det(found.rotation.matrix)) == pytest.approx(1)
