from loraport.adapters import Role, Site
from loraport.models import BaseModel
from loraport.models.taps import SIDES, Tap, tap_widths


def test_modules_that_read_the_same_share_a_tap() -> None:
    taps = {Tap.input(Site(1, role)) for role in Role}
    assert len(taps) == 4
    assert Tap.input(Site(1, Role.Q)) == Tap.input(Site(1, Role.K)) == Tap.input(Site(1, Role.V))
    assert Tap.input(Site(1, Role.GATE)) == Tap.input(Site(1, Role.UP))
    assert len({Tap.output(Site(1, role)) for role in Role}) == 7


def test_labels_are_distinct_and_readable(pico_target: BaseModel) -> None:
    sites = list(pico_target.sites.shapes)
    taps = {*map(Tap.input, sites), *map(Tap.output, sites), *map(Tap.residual, range(3))}
    assert len({tap.label_on(side) for tap in taps for side in SIDES}) == 2 * len(taps)
    assert Tap.input(Site(3, Role.V)).label == "3.q.input"
    assert Tap.output(Site(3, Role.V)).label_on("target") == "target.3.v.output"
    assert Tap.residual(3).label_on("source") == "source.3.residual"


def test_widths_are_those_of_the_weights(pico_target: BaseModel) -> None:
    sites = pico_target.sites
    for site, (out, in_) in sites.shapes.items():
        taps = [Tap.input(site), Tap.output(site), Tap.residual(site.layer)]
        assert list(tap_widths(sites, taps).values()) == [in_, out, 48]
