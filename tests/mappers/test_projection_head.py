import numpy as np
import torch
from scipy.special import erf
from torch import Tensor

from loraport.mappers.projection_head import ProjectionHead


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(hidden: int, seed: int = 1) -> ProjectionHead:
    made = ProjectionHead(5, 3, hidden, torch.Generator().manual_seed(seed))
    made.start(drawn(3, 5, seed=2), drawn(3, seed=3))
    return made


def test_it_begins_as_its_skip() -> None:
    x = drawn(2, 7, 5)
    torch.testing.assert_close(head(8)(x), x @ drawn(3, 5, seed=2).mT + drawn(3, seed=3))


def test_it_is_the_formula() -> None:
    made, x = head(8), drawn(7, 5)
    assert made.inner is not None
    assert made.outer is not None
    with torch.no_grad():
        made.inner.bias.copy_(drawn(8, seed=4))
        made.outer.weight.copy_(drawn(3, 8, seed=5))
    rows = x.double().numpy()
    w1, b1, w2 = (
        t.detach().double().numpy() for t in (*made.inner.parameters(), drawn(3, 8, seed=5))
    )
    scaled = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-6)
    inside = scaled @ w1.T + b1
    gelu = inside * (1 + erf(inside / np.sqrt(2))) / 2
    skip = rows @ drawn(3, 5, seed=2).double().numpy().T + drawn(3, seed=3).double().numpy()
    np.testing.assert_allclose(made(x).detach().numpy(), skip + gelu @ w2.T, rtol=1e-4, atol=1e-5)


def test_without_an_mlp_it_has_no_other_weights_and_is_linear() -> None:
    made = head(0)
    assert {name for name, _ in made.named_parameters()} == {"skip.weight", "skip.bias"}
    one, other = drawn(4, 5), drawn(4, 5, seed=9)
    middle = made((one + other) / 2)
    torch.testing.assert_close(middle, (made(one) + made(other)) / 2)


def test_the_generator_alone_draws_the_mlp() -> None:
    before = torch.get_rng_state()
    one, same, other = head(8), head(8), head(8, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.inner is not None
    assert same.inner is not None
    assert other.inner is not None
    assert torch.equal(one.inner.weight, same.inner.weight)
    assert not torch.equal(one.inner.weight, other.inner.weight)
