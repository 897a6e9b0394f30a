import numpy as np
import torch

from loraport.alignment.moments import PairedMoments


def samples(rows: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 5, generator=generator) + 3
    y = torch.randn(rows, 7, generator=generator) - x[:, :1]
    return x, y


def test_moments_are_those_of_numpy() -> None:
    x, y = samples()
    moments = PairedMoments.of(x, y)
    a, b = (z.double().numpy() for z in (x, y))
    assert moments.rows == 200
    np.testing.assert_allclose(moments.x_sum, a.sum(0))
    np.testing.assert_allclose(moments.y_sum, b.sum(0))
    np.testing.assert_allclose(moments.xx, a.T @ a)
    np.testing.assert_allclose(moments.yy, b.T @ b)
    np.testing.assert_allclose(moments.xy, a.T @ b)


def test_centred_moments_are_covariances() -> None:
    x, y = samples()
    centred = PairedMoments.of(x, y).centred()
    expected = np.cov(x.double().numpy().T, y.double().numpy().T, bias=True) * 200
    np.testing.assert_allclose(centred.xx, expected[:5, :5], atol=1e-9)
    np.testing.assert_allclose(centred.yy, expected[5:, 5:], atol=1e-9)
    np.testing.assert_allclose(centred.xy, expected[:5, 5:], atol=1e-9)
    assert torch.equal(centred.centred().xy, centred.xy)
    assert not PairedMoments.of(torch.empty(0, 3), torch.empty(0, 2)).centred().xy.any()


def test_swapped_moments_are_those_of_swapped_samples() -> None:
    x, y = samples()
    swapped, expected = PairedMoments.of(x, y).swapped(), PairedMoments.of(y, x)
    for name in ("x_sum", "y_sum", "xx", "yy", "xy"):
        torch.testing.assert_close(getattr(swapped, name), getattr(expected, name))
