import math
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.exceptions import AdapterError
from loraport.models import BaseModel, LoraFineTuning
from loraport.refinement.student import Student
from loraport.refinement.student_training import train_student

Q, DOWN = Site(0, Role.Q), Site(1, Role.DOWN)


class Copying(Student):
    """Learns to predict each next byte of the batch's rows."""

    def loss(self, batch: Tensor) -> Float[Tensor, ""]:
        logits = self.base.network(input_ids=batch, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def rows(count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(2, 250, (3, 9), generator=generator) for _ in range(count)]


def trained(base: BaseModel, start: LoraAdapter, **options: Any) -> LoraAdapter:
    with closing(Copying(base, start, **options)) as student:
        train_student(student, rows())
        return student.adapter()


@pytest.fixture
def uneven(pico_target: BaseModel) -> LoraAdapter:
    """Rank 2 at one site; rank 5, of which 3 are used, and a negative scale at another."""
    generator = torch.Generator().manual_seed(8)
    shapes = pico_target.sites.shapes

    def drawn(site: Site, rank: int, scale: float) -> LowRank:
        out, in_ = shapes[site]
        a = torch.randn(rank, in_, generator=generator)
        return LowRank(a, torch.randn(out, rank, generator=generator), scale)

    down = drawn(DOWN, 5, -0.03)
    b = down.B.clone()
    b[:, 3:] = 0
    updates = {Q: drawn(Q, 2, 0.01), DOWN: LowRank(down.A, b, down.scale)}
    return LoraAdapter(updates, pico_target.name)


def test_start_from_nothing_is_a_fresh_draw(
    pico_target: BaseModel, nothing: Callable[..., LoraAdapter]
) -> None:
    with closing(Copying(pico_target, nothing(pico_target), seed=3)) as student:
        found = student.adapter()
    with closing(LoraFineTuning(pico_target, roles=tuple(Role), init_seed=3)) as tuning:
        expected = tuning.adapter()
    assert found.content_hash() == expected.content_hash()
    assert {update.scale for update in found.values()} == {2.0}


def test_start_is_kept_with_its_sites_and_ranks(
    pico_target: BaseModel, uneven: LoraAdapter
) -> None:
    with closing(Copying(pico_target, uneven)) as student:
        found = student.adapter()
    assert {site: update.rank for site, update in found.items()} == {Q: 2, DOWN: 5}
    assert relative_error(found, uneven) < 1e-6
    assert {factor.dtype for u in found.values() for factor in (u.A, u.B)} == {torch.float32}


def test_start_has_the_size_of_a_fresh_draw_whatever_its_own_was(
    pico_target: BaseModel, uneven: LoraAdapter
) -> None:
    with closing(Copying(pico_target, uneven)) as student:
        found = student.adapter()
    norms = torch.cat([update.A.norm(dim=1) for update in found.values()])
    assert torch.allclose(norms[[0, 1, 2, 3, 4]], torch.tensor(1 / math.sqrt(3)))
    # Two rows of the other site are not needed: they are drawn, and do nothing.
    assert ((norms[5:] - 1 / math.sqrt(3)).abs() < 0.15).all()
    assert (found[DOWN].B[:, 3:] == 0).all()
    assert (found[DOWN].B[:, :3] != 0).any(dim=0).all()


def test_gauge_of_the_start_does_not_change_what_is_learned(
    pico_target: BaseModel, uneven: LoraAdapter
) -> None:
    generator = torch.Generator().manual_seed(1)

    def turned(update: LowRank) -> LowRank:
        mix = torch.eye(update.rank) + 0.3 * torch.randn(
            update.rank, update.rank, generator=generator
        )
        return LowRank(50 * mix @ update.A, update.B @ mix.inverse() / 25, update.scale / 2)

    other = uneven.map(turned)
    assert relative_error(other, uneven) < 1e-5
    one, two = trained(pico_target, uneven), trained(pico_target, other)
    moved = relative_error(one, uneven)
    assert moved > 0.01
    assert relative_error(two, one) < 0.02 * moved


def test_rank_beyond_the_width_of_the_module_is_filled_up(pico_target: BaseModel) -> None:
    k = Site(0, Role.K)  # 12 outputs
    out, in_ = pico_target.sites.shapes[k]
    generator = torch.Generator().manual_seed(2)
    wide = LowRank(
        torch.randn(out + 4, in_, generator=generator),
        torch.randn(out, out + 4, generator=generator),
    )
    start = LoraAdapter({k: wide}, pico_target.name)
    with closing(Copying(pico_target, start)) as student:
        found = student.adapter()
    assert found[k].rank == out + 4
    assert relative_error(found, start) < 1e-6
    assert (found[k].A[out:] != 0).any(dim=1).all()


def test_base_network_is_itself_again_afterwards(
    pico_target: BaseModel, uneven: LoraAdapter
) -> None:
    before = {name: value.clone() for name, value in pico_target.network.state_dict().items()}
    modules = list(pico_target.network.modules())
    trained(pico_target, uneven)
    after = pico_target.network.state_dict()
    assert list(pico_target.network.modules()) == modules
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in pico_target.network.parameters())
    assert not pico_target.network.training


def test_same_seed_gives_the_same_bits(
    pico_target: BaseModel, nothing: Callable[..., LoraAdapter]
) -> None:
    start = nothing(pico_target, roles=(Role.Q, Role.V))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = trained(pico_target, start, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
    torch.manual_seed(2)
    assert trained(pico_target, start, seed=5).content_hash() == first.content_hash()
    assert trained(pico_target, start, seed=6).content_hash() != first.content_hash()


def test_adapter_of_another_model_is_refused(
    pico_target: BaseModel, pico_source: BaseModel, nothing: Callable[..., LoraAdapter]
) -> None:
    with pytest.raises(AdapterError, match=r"pico/target has .* map the adapter"):
        Copying(pico_target, nothing(pico_source))
