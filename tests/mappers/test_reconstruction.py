import pytest
import torch

from loraport.alignment.linear_maps import HeldOutError
from loraport.alignment.moments import PairedMoments
from loraport.mappers.reconstruction import Reconstruction

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(90, 5, generator=GENERATOR) + 1
Y = torch.randn(90, 4, generator=GENERATOR) + X[:, :4]
MATRIX = torch.randn(4, 5, generator=GENERATOR).double() / 4
FIT, HELD = slice(0, 60), slice(60, 90)


def found() -> Reconstruction:
    """Of the held-out rows in two batches, as a linear map makes them."""
    made = X.double() @ MATRIX.mT
    return Reconstruction.of(made[60:71].float(), Y[60:71]) + Reconstruction.of(
        made[71:].float(), Y[71:]
    )


def test_of_a_linear_map_it_is_what_the_linear_mappers_report() -> None:
    train, held_out = (PairedMoments.of(X[part], Y[part]) for part in (FIT, HELD))
    expected = HeldOutError.of(MATRIX, train, held_out).r2
    assert found().r2(Y[FIT].mean(dim=0)) == pytest.approx(expected, abs=1e-6)
    centred = HeldOutError.of(MATRIX, train.centred(), held_out.centred()).r2
    assert found().centred_r2() == pytest.approx(centred, abs=1e-6)


def test_a_constant_error_counts_only_where_values_count() -> None:
    away = Reconstruction.of(Y[HELD] + 3, Y[HELD])
    assert away.centred_r2() == pytest.approx(1, abs=1e-6)
    assert away.r2(Y[FIT].mean(dim=0)) < 0


def test_sums_of_two_devices_are_those_of_all_rows() -> None:
    halves = [Reconstruction.of(X[part, :4], Y[part]) for part in (slice(0, 45), slice(45, 90))]
    sums = iter([torch.stack(parts).sum(dim=0) for parts in zip(*map(_parts, halves), strict=True)])
    both = halves[0].reduced(lambda tensor: next(sums))
    whole = Reconstruction.of(X[:, :4], Y)
    assert both.r2(Y.mean(dim=0)) == pytest.approx(whole.r2(Y.mean(dim=0)), abs=1e-9)


def test_rows_that_do_not_vary_give_zero() -> None:
    flat = torch.ones(9, 3)
    assert Reconstruction.of(flat + 1, flat).centred_r2() == 0
    assert Reconstruction.of(flat + 1, flat).r2(torch.ones(3)) == 0


def _parts(one: Reconstruction) -> tuple[torch.Tensor, ...]:
    return one.sums, one.missed, one.there
