"""Which source site feeds which target site."""

from collections.abc import Callable

import pytest

from loraport.adapters import LoraAdapter, Role, Site
from loraport.exceptions import AdapterError
from loraport.mappers import BasePair
from loraport.mappers.site_pairs import SitePairs

Adapters = Callable[..., LoraAdapter]


def test_adapter_whose_layers_feed_nothing_is_refused(
    pico_pair: BasePair, adapter_of: Adapters
) -> None:
    adapter = adapter_of(pico_pair.target)
    middle = LoraAdapter({s: u for s, u in adapter.items() if s.layer == 1}, "pico/target")
    with pytest.raises(AdapterError, match=r"only layers \[1\], none .* \[0, 2\] feed"):
        SitePairs.of(middle, pico_pair.target.sites, pico_pair.source.sites)


def test_sites_that_are_not_adapted_stay_so(pico_pair: BasePair, adapter_of: Adapters) -> None:
    adapter = adapter_of(pico_pair.source, (Role.Q,))
    first = LoraAdapter({s: u for s, u in adapter.items() if s.layer == 0}, "pico/llama")
    pairs = SitePairs.of(first, pico_pair.source.sites, pico_pair.target.sites)
    assert list(pairs) == [(Site(0, Role.Q), Site(0, Role.Q))]
    assert pairs.repeated == 0
    assert pairs.dropped == ()


def test_source_layers_that_feed_two_are_counted(pico_pair: BasePair, adapter_of: Adapters) -> None:
    adapter = adapter_of(pico_pair.source, (Role.Q,))
    assert SitePairs.of(adapter, pico_pair.source.sites, pico_pair.target.sites).repeated == 1
