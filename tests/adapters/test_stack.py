import numpy as np
import pytest
import torch
from torch import Tensor

from loraport.adapters import AdapterStack, LoraAdapter, LowRank, Role, Site
from loraport.exceptions import AdapterError

Q, V = Site(0, Role.Q), Site(2, Role.V)
SHAPES = {Q: (7, 6), V: (5, 6)}


def drawn(
    seed: int, rank: int = 2, shapes: dict[Site, tuple[int, int]] | None = None
) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for site, (out, in_) in (shapes or SHAPES).items():
        a = torch.randn(rank, in_, generator=generator)
        updates[site] = LowRank(a, torch.randn(out, rank, generator=generator), 0.5 + seed)
    return LoraAdapter(updates, "some/base")


ADAPTERS = {f"t{seed}": drawn(seed) for seed in range(5)}
STACK = AdapterStack.of(ADAPTERS)


def dense(site: Site, adapters: dict[str, LoraAdapter] | None = None) -> Tensor:
    updates = [adapter[site].to(torch.float64) for adapter in (adapters or ADAPTERS).values()]
    return torch.stack([update.dense() for update in updates])


def test_it_holds_each_update_with_its_scale() -> None:
    assert list(STACK) == [Q, V]
    assert (len(STACK), STACK.adapters, len(STACK[Q])) == (2, 5, 5)
    for site in STACK:
        for index in range(5):
            update = STACK[site].low_rank(index)
            torch.testing.assert_close(
                update.dense().double(), dense(site)[index], rtol=1e-5, atol=0
            )
            assert update.A.dtype == torch.float32


@pytest.mark.parametrize("site", [Q, V])
def test_delta_gram_equals_the_dense_one(site: Site) -> None:
    others = {f"o{seed}": drawn(seed, rank=3) for seed in (11, 12)}
    gram = STACK[site].delta_gram(AdapterStack.of(others)[site])
    expected = dense(site).flatten(1) @ dense(site, others).flatten(1).mT
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram, expected, rtol=1e-6, atol=1e-5)


def test_factor_gram_equals_that_of_the_flattened_factors() -> None:
    rows = [
        np.concatenate([u.A.numpy().ravel(), (u.scale * u.B).numpy().ravel()]).astype(np.float64)
        for u in (adapter[Q] for adapter in ADAPTERS.values())
    ]
    gram = STACK[Q].factor_gram(STACK[Q])
    np.testing.assert_allclose(gram.numpy(), np.stack(rows) @ np.stack(rows).T, rtol=1e-6)


@pytest.mark.parametrize(("site", "rank"), [(Q, 1), (Q, 4), (V, 2), (V, 8)])
def test_delta_sum_is_the_nearest_update_to_the_dense_sum(site: Site, rank: int) -> None:
    # 5 adapters of rank 2 have more columns than the site has rows.
    coefficients = torch.tensor([0.5, -1.0, 0.25, 2.0, 0.0], dtype=torch.float64)
    total = torch.einsum("i,iox->ox", coefficients, dense(site)).numpy()
    u, sigma, vt = np.linalg.svd(total, full_matrices=False)
    best = (u[:, :rank] * sigma[:rank]) @ vt[:rank]
    for _ in range(2):  # the second time from the bases that are kept
        update = STACK[site].delta_sum(coefficients, rank)
        assert (update.rank, update.A.dtype) == (rank, torch.float32)
        np.testing.assert_allclose(update.dense().numpy(), best, atol=1e-5 * sigma[0])


def test_factor_sum_is_that_of_the_factors() -> None:
    coefficients = torch.tensor([0.5, -1.0, 0.25, 2.0, 0.0], dtype=torch.float64)
    update = STACK[V].factor_sum(coefficients)
    updates = [adapter[V].to(torch.float64) for adapter in ADAPTERS.values()]
    a = torch.einsum("i,irx->rx", coefficients, torch.stack([u.A for u in updates]))
    b = torch.einsum("i,ior->or", coefficients, torch.stack([u.scale * u.B for u in updates]))
    torch.testing.assert_close(update.A.double(), a, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(update.B.double(), b, rtol=1e-5, atol=1e-5)


def test_select_keeps_the_order_and_tensors_lead_back_to_the_stack() -> None:
    chosen = STACK.select([3, 0])
    assert chosen.adapters == 2
    tensors = STACK.tensors()
    assert set(tensors) == {"0.q.A", "0.q.B", "2.v.A", "2.v.B"}
    again = AdapterStack.from_tensors(tensors)
    assert list(again) == [Q, V]
    for site in STACK:
        for factor in ("A", "B"):
            whole = getattr(STACK[site], factor)
            assert torch.equal(getattr(chosen[site], factor), whole[[3, 0]])
            assert torch.equal(getattr(again[site], factor), whole)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (drawn(9, shapes={Q: (7, 6)}), r"odd has nothing at .*2\.self_attn\.v_proj"),
        (drawn(9, shapes=SHAPES | {Site(1, Role.UP): (3, 6)}), r"1\.mlp\.up_proj.*has nothing"),
        (drawn(9, rank=3), r"odd has rank 3 .*0\.self_attn\.q_proj.* t0 has rank 2"),
        (drawn(9, shapes=SHAPES | {V: (5, 8)}), r"odd .*\(5, 8\) at .*2\.self.*t0 .*\(5, 6\)"),
    ],
    ids=["missing site", "extra site", "rank", "shape"],
)
def test_adapters_that_differ_are_refused_by_name(odd: LoraAdapter, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        AdapterStack.of({**ADAPTERS, "odd": odd})
