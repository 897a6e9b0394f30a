"""An update of zero."""

from loraport.adapters import LoraAdapter
from loraport.mappers import BasePair
from loraport.mappers.noop import NoopMapper


def test_every_update_is_zero_and_the_rank_kept(
    pico_pair: BasePair, pico_adapter: LoraAdapter
) -> None:
    mapper = NoopMapper()
    mapper.use(pico_pair)
    result = mapper.map(pico_adapter)
    assert len(result) == len(pico_pair.target.sites.shapes)
    assert result.norm() == 0
    assert {update.rank for update in result.values()} == {3}
