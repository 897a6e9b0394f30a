"""The LoRA nearest to a cartridge, against computations of its own."""

import numpy as np
import pytest
import torch
from torch import Tensor

from loraport.adapters import LowRank, Role, Site
from loraport.mappers.cartridge import Cartridge
from loraport.mappers.cartridge_export import exported
from loraport.mappers.cartridge_site import CartridgeSite
from loraport.mappers.projection_head import ProjectionHead

SITE = Site(0, Role.Q)
LABEL = "target.0.q.input"
WIDTH, OUT, RANK = 8, 7, 2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(width: int, out: int, hidden: int, seed: int) -> ProjectionHead:
    made = ProjectionHead(width, out, hidden, torch.Generator().manual_seed(seed))
    made.start(drawn(out, width, seed=seed) / width**0.5, torch.zeros(out))
    if made.outer is not None:
        made.outer.weight.data = drawn(out, hidden, seed=seed + 1)
    return made


def cartridge(hidden: int) -> Cartridge:
    update = LowRank(drawn(RANK, 6, seed=1), drawn(5, RANK, seed=2), 0.5)
    site = CartridgeSite(
        *(SITE, SITE, 1.0, head(WIDTH, 6, hidden, 3), head(5, OUT, hidden, 5)),
        *(drawn(5, 6, seed=7), drawn(5, seed=8), update),
    )
    return Cartridge("pico/target", [site])


TRAIN, HELD_OUT = {LABEL: drawn(3000, WIDTH, seed=11)}, {LABEL: drawn(700, WIDTH, seed=12)}


def test_a_linear_one_is_exported_exactly() -> None:
    linear = cartridge(0)
    made, facts = exported(linear, TRAIN, HELD_OUT, RANK)
    (site,) = linear.acts_at()[SITE]
    expected = site.writer.skip.weight @ site.B @ site.A @ site.reader.skip.weight
    torch.testing.assert_close(made[SITE].dense(), expected, rtol=1e-4, atol=1e-4)
    assert facts["0.q"]["r2"] == pytest.approx(1, abs=1e-6)
    assert facts["0.q"]["lost"] == pytest.approx(0, abs=1e-6)
    assert (made.base_model, made[SITE].rank) == ("pico/target", RANK)


def test_what_a_nonlinear_one_loses_is_measured_on_held_out_rows() -> None:
    bent = cartridge(6)
    made, facts = exported(bent, TRAIN, HELD_OUT, 4)
    with torch.no_grad():
        change = bent.change(SITE, HELD_OUT[LABEL])
    error = change - HELD_OUT[LABEL] @ made[SITE].dense().mT
    r2 = 1 - float(error.double().square().sum() / change.double().square().sum())
    assert facts["0.q"]["r2"] == pytest.approx(r2, abs=1e-5)
    assert 0.05 < r2 < 0.98
    assert facts["0.q"]["norm"] == pytest.approx(float(made[SITE].dense().norm()), rel=1e-5)


def test_at_full_rank_it_is_least_squares() -> None:
    bent = cartridge(6)
    made, facts = exported(bent, TRAIN, HELD_OUT, OUT)
    with torch.no_grad():
        change = bent.change(SITE, TRAIN[LABEL]).numpy()
    expected = np.linalg.lstsq(TRAIN[LABEL].numpy(), change, rcond=None)[0].T
    assert facts["0.q"]["strength"] <= 1e-2
    np.testing.assert_allclose(made[SITE].dense().numpy(), expected, atol=0.02)


def test_a_lower_rank_loses_more() -> None:
    lost = [exported(cartridge(6), TRAIN, HELD_OUT, rank)[1]["0.q"]["lost"] for rank in (1, 2, 5)]
    assert lost[0] > lost[1] > lost[2]
