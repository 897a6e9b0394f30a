import pytest
import torch
from torch import Tensor

from loraport.alignment.anchor_locks import AnchorLocks
from loraport.alignment.moments import PairedMoments
from loraport.alignment.procrustes import rotation


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Orthonormal along the shorter side."""
    q = torch.linalg.qr(drawn(max(rows, columns), min(rows, columns), seed=seed)).Q
    return q if rows >= columns else q.mT


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
