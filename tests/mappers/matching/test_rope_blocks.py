import pytest
import torch
from torch import Tensor

from loraport.adapters import Role
from loraport.alignment.linear_maps import SplitMoments
from loraport.alignment.moments import PairedMoments
from loraport.mappers.matching.head_axes import HeadShape
from loraport.mappers.matching.rope_blocks import RopeBlocks, nearest_frequencies

SHAPE = HeadShape(groups=2, heads=2, dims=8)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def split(x: Tensor, y: Tensor) -> SplitMoments:
    return SplitMoments(PairedMoments.of(x[:300], y[:300]), PairedMoments.of(x[300:], y[300:]))


def turned(x: Tensor, heads: list[int], pairs: list[int], dims: int, seed: int) -> Tensor:
    """Every target head is a source head whose pairs are scaled and rotated."""
    z = x.unflatten(1, (-1, 2, dims // 2))
    z = torch.complex(z[:, :, 0], z[:, :, 1])[:, heads][:, :, pairs]
    w = z * torch.complex(*drawn(2, len(heads), len(pairs), seed=seed))
    return torch.stack([w.real, w.imag], dim=2).flatten(1)


def test_planted_heads_and_rotations_are_recovered() -> None:
    q, k = drawn(400, 32), drawn(400, 16, seed=1)
    pairs = [0, 1, 2, 3]
    # The two groups change places, and the heads of one of them too.
    q_heads, k_heads = [3, 2, 0, 1], [1, 0]
    targets = {
        Role.Q: turned(q, q_heads, pairs, 8, 5),
        Role.K: turned(k, k_heads, pairs, 8, 6),
    }
    moments = {Role.Q: split(q, targets[Role.Q]), Role.K: split(k, targets[Role.K])}
    blocks = RopeBlocks(SHAPE, SHAPE, torch.tensor(pairs))
    for role, x in ((Role.Q, q), (Role.K, k)):
        found = blocks.fit(role, moments)
        assert torch.allclose(x @ found.matrix.mT, targets[role], atol=1e-8)
        assert found.error.r2 == pytest.approx(1)
        alone = blocks.fit(role, {role: moments[role]})
        assert torch.allclose(alone.matrix, found.matrix)


def test_map_commutes_with_rotary_embeddings() -> None:
    x, y = drawn(400, 16), drawn(400, 24, seed=1) + drawn(400, 16, seed=0) @ drawn(16, 24, seed=2)
    source, target = HeadShape(1, 2, 8), HeadShape(1, 2, 12)
    frequencies = torch.tensor([1.0, 0.5, 0.2, 0.1])
    pairs = torch.tensor([0, 0, 1, 2, 2, 3])
    matrix = RopeBlocks(source, target, pairs).fit(Role.Q, {Role.Q: split(x, y)}).matrix

    def turn(rows: Tensor, dims: int, by: Tensor) -> Tensor:
        z = rows.unflatten(1, (-1, 2, dims // 2))
        w = torch.complex(z[:, :, 0], z[:, :, 1]) * torch.polar(torch.ones_like(by), 7 * by)
        return torch.stack([w.real, w.imag], dim=2).flatten(1)

    before = turn(x, 8, frequencies.double()) @ matrix.mT
    after = turn(x @ matrix.mT, 12, frequencies[pairs].double())
    assert torch.allclose(before, after, atol=1e-9)
    assert float(matrix.norm()) > 0.1


def test_each_block_is_the_least_squares_one() -> None:
    x, y = drawn(400, 2), drawn(400, 2, seed=1) + 0.5 * drawn(400, 2).flip(1)
    one = HeadShape(1, 1, 2)
    matrix = RopeBlocks(one, one, torch.tensor([0])).fit(Role.K, {Role.K: split(x, y)}).matrix
    a, b = float(matrix[0, 0]), float(matrix[1, 0])
    assert matrix.tolist() == [[a, -b], [b, a]]
    # |y - (aI + bJ) x|^2 is least squares on the two columns x and Jx.
    columns = torch.stack([x[:300].flatten(), torch.stack([-x[:300, 1], x[:300, 0]], 1).flatten()])
    expected = torch.linalg.lstsq(columns.mT, y[:300].flatten()).solution
    assert torch.allclose(torch.tensor([a, b]).double(), expected)


def test_heads_that_never_vary_give_zero() -> None:
    x, y = torch.zeros(400, 16), drawn(400, 16)
    blocks = RopeBlocks(SHAPE, SHAPE, torch.arange(4))
    assert not blocks.fit(Role.K, {Role.K: split(x, y)}).matrix.any()


def test_nearest_frequencies() -> None:
    source, target = torch.tensor([0.0, -1.0, -2.0]), torch.tensor([0.3, -0.6, -0.4, -9.0])
    assert nearest_frequencies(source, target).tolist() == [0, 1, 0, 2]
