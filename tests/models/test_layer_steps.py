from collections.abc import Callable

import pytest
import torch

from loraport.adapters import LoraAdapter, Role, Site
from loraport.data.aligned_batch import TokenBatch
from loraport.models import ARCHITECTURES, BaseModel, attached
from loraport.models.activations import activations
from loraport.models.layer_steps import LayerSteps
from loraport.models.taps import Tap


@pytest.fixture
def texts() -> TokenBatch:
    """Longer than the window, one of them padded."""
    ids = torch.randint(2, 250, (3, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0
    return TokenBatch(ids, mask)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestLayerSteps:
    def test_layer_by_layer_is_the_network(
        self, architecture: str, pico: Callable[[str], BaseModel], texts: TokenBatch
    ) -> None:
        network = pico(architecture).network
        taps = [Tap.residual(layer) for layer in range(2)]
        expected = activations(network, texts, torch.arange(72), taps)
        steps = LayerSteps(network, texts)
        stream = steps.first
        for tap in taps:
            stream = steps.step(tap.layer, stream)
            torch.testing.assert_close(stream.flatten(0, 1), expected[tap])

    def test_what_is_attached_takes_part(
        self,
        architecture: str,
        pico: Callable[[str], BaseModel],
        random_adapter: Callable[..., LoraAdapter],
        texts: TokenBatch,
    ) -> None:
        base = pico(architecture)
        site = Site(1, Role.DOWN)
        taps = [Tap.input(site), Tap.output(site), Tap.residual(1)]
        steps = LayerSteps(base.network, texts)
        with attached(base.network, random_adapter(base)):
            expected = activations(base.network, texts, torch.arange(72), taps)
            seen = steps.watched(site, steps.step(0, steps.first))
        for tap, found in zip(taps, seen, strict=True):
            torch.testing.assert_close(found.flatten(0, 1), expected[tap])
        bare = steps.watched(site, steps.step(0, steps.first))
        assert not torch.allclose(bare[2], seen[2])
