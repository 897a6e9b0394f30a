import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from loraport.adapters import (
    AdapterStack,
    LoraAdapter,
    LowRank,
    Role,
    Site,
    relative_error,
    write_adapter,
)
from loraport.data import AnchorPairs, AnchorSet, ZooPairs
from loraport.exceptions import AdapterError, ConfigurationError
from loraport.mappers import load_mapper
from loraport.mappers.contract import trained
from loraport.mappers.from_anchors import STRENGTHS, checked_strengths, paired_sites
from loraport.mappers.ridge import GlobalRidgeMapper


@pytest.fixture(scope="module")
def ridge(noisy_zoo: ZooPairs) -> GlobalRidgeMapper:
    mapper = GlobalRidgeMapper(strengths=[0.01])
    mapper.fit(AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1:]))
    return mapper


def stack(layers: tuple[int, ...], roles: tuple[Role, ...] = (Role.Q, Role.V)) -> AdapterStack:
    update = LowRank(torch.ones(1, 3), torch.ones(2, 1))
    sites = {Site(layer, role): update for layer in layers for role in roles}
    return AdapterStack.of({"one": LoraAdapter(sites, "some/base")})


def test_sites_are_paired_by_role_and_relative_depth() -> None:
    pairs = paired_sites(stack((0, 1, 2)), stack((0, 1)))
    assert pairs == {
        Site(0, Role.Q): Site(0, Role.Q),
        Site(0, Role.V): Site(0, Role.V),
        Site(1, Role.Q): Site(2, Role.Q),
        Site(1, Role.V): Site(2, Role.V),
    }


def test_depth_is_among_the_layers_that_are_adapted() -> None:
    pairs = paired_sites(stack((4, 5, 6)), stack((10, 20), (Role.V,)))
    assert pairs == {Site(10, Role.V): Site(4, Role.V), Site(20, Role.V): Site(6, Role.V)}


def test_role_that_the_source_lacks_in_a_layer_is_named() -> None:
    with pytest.raises(AdapterError, match=r"1\.self_attn\.v_proj.*2\.self_attn\.v_proj, .*q_proj"):
        paired_sites(stack((0, 1, 2), (Role.Q,)), stack((1,)))


def test_scale_of_the_query_counts(ridge: GlobalRidgeMapper, noisy_zoo: ZooPairs) -> None:
    query = noisy_zoo.source["t00"]
    folded = query.map(lambda update: LowRank(update.A, update.scale * update.B))
    larger = query.map(lambda update: update.scaled(1.5))
    expected = ridge.map(query)
    assert relative_error(ridge.map(folded), expected) < 1e-5
    assert relative_error(ridge.map(larger), expected) > 0.05


def test_adapter_that_does_not_fit_is_refused_by_name(
    ridge: GlobalRidgeMapper, noisy_zoo: ZooPairs
) -> None:
    query, odd = noisy_zoo.source["t00"], Site(1, Role.V)
    wider = LowRank(torch.ones(4, 13), torch.ones(6, 4))
    rest = {site: update for site, update in query.items() if site != odd}
    for wrong, message in (
        (
            replace(query, sites=rest),
            r"has nothing at model\.layers\.1\.self_attn\.v_proj, .*pico/source, have \(6, 12\)",
        ),
        (
            replace(query, sites={**query.sites, Site(1, Role.UP): wider}),
            r"has \(6, 13\) at model\.layers\.1\.mlp\.up_proj, .* have nothing",
        ),
        (
            replace(query, sites={**rest, odd: wider}),
            r"has \(6, 13\) at model\.layers\.1\.self_attn\.v_proj, .* have \(6, 12\)",
        ),
        (noisy_zoo.target["t00"], r"pico/target has \(10, 14\) at .* have \(8, 12\)"),
    ):
        with pytest.raises(AdapterError, match=message):
            ridge.map(wrong)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_an_epoch_of_any_batches_fits_on_the_training_anchors(
    batch_size: int, noisy_zoo: ZooPairs, tmp_path: Path
) -> None:
    data = AnchorPairs(noisy_zoo, ["t00"], validation=0.3, batch_size=batch_size)
    mapper, expected = GlobalRidgeMapper(), GlobalRidgeMapper()
    trained(mapper, data, tmp_path / "mapper.ckpt", max_epochs=1)
    left_out = data.validation_anchors
    assert left_out is not None
    assert mapper.report()["anchors"] == [
        name for name in noisy_zoo.source if name not in ("t00", *left_out.names)
    ]
    expected.fit(data.training_anchors)
    query = noisy_zoo.source["t00"]
    assert mapper.map(query).content_hash() == expected.map(query).content_hash()


@pytest.mark.slow
def test_two_devices_fit_what_one_fits(noisy_zoo: ZooPairs, tmp_path: Path) -> None:
    for side, adapters in (("source", noisy_zoo.source), ("target", noisy_zoo.target)):
        for task, adapter in adapters.items():
            write_adapter(adapter, tmp_path / side / task)
    script, checkpoint = Path(__file__).with_name("ddp_fit.py"), tmp_path / "mapper.ckpt"
    kind = "loraport.mappers.ridge.GlobalRidgeMapper"
    done = subprocess.run(
        [sys.executable, str(script), kind, str(tmp_path), str(checkpoint)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "MEMBER: 2/2" in done.stderr
    fitted, expected = load_mapper(checkpoint), GlobalRidgeMapper()
    expected.fit(AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1:]))
    assert fitted.report() == expected.report()
    query = noisy_zoo.source["t00"]
    assert relative_error(fitted.map(query), expected.map(query)) < 1e-6


@pytest.mark.parametrize("space", ["delta", "factors"])
def test_each_space_compares_what_it_names(
    space: str, noisy_zoo: ZooPairs, dense: Callable[[AdapterStack, Site], Tensor]
) -> None:
    stack, site = AdapterStack.of(noisy_zoo.target), Site(1, Role.V)
    rows = {
        "delta": dense(stack, site),
        "factors": torch.cat([stack[site].A.flatten(1), stack[site].B.flatten(1)], dim=1).double(),
    }[space]
    found = GlobalRidgeMapper(space).inner(stack, stack)[site]
    torch.testing.assert_close(found, rows @ rows.mT)


def test_unknown_space_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"mapper\.space is 'flat'.*delta or factors"):
        GlobalRidgeMapper("flat")


def test_adapter_of_another_rank_has_updates_but_no_factors_to_compare(
    ridge: GlobalRidgeMapper, noisy_zoo: ZooPairs
) -> None:
    query = noisy_zoo.source["t00"].map(lambda update: update.truncated(2).matrix)
    assert all(update.rank == 4 for update in ridge.map(query).values())
    of_factors = GlobalRidgeMapper("factors")
    of_factors.fit(ridge.anchors)
    with pytest.raises(ConfigurationError, match=r"rank 2 with factors of rank 4.*space=delta"):
        of_factors.map(query)


@pytest.mark.parametrize(
    ("strengths", "finite"),
    [
        *(([], False), ([0.0, 1.0], False), ([1.0, -0.1], False), ([float("nan")], False)),
        *(([], True), ([1.0, float("inf")], True)),
    ],
)
def test_impossible_strengths_are_refused(strengths: list[float], finite: bool) -> None:
    assert checked_strengths(list(STRENGTHS)) == STRENGTHS
    with pytest.raises(ConfigurationError, match=r"mapper\.strengths is \[.*one or more positive"):
        checked_strengths(strengths, finite=finite)


def _degenerate(zoo: ZooPairs, kind: str) -> tuple[ZooPairs, list[str]]:
    """Return a zoo whose anchors are alike in some way, and their names; t00 is not among them."""
    names = list(zoo.source)
    few = {"one": 1, "two": 2}.get(kind)
    if few:
        return zoo, names[1 : 1 + few]

    def own(side: str, index: int, name: str) -> LoraAdapter:
        adapters = getattr(zoo, side)
        first, adapter = adapters["t01"], adapters[name]
        generator = torch.Generator().manual_seed(index)

        def shifted(update: LowRank) -> LowRank:
            size = 1e-6 if kind == "equal up to rounding" else 1e-3
            noise = torch.randn(update.B.shape, generator=generator)
            return LowRank(update.A, update.B + size * noise, update.scale)

        match kind:
            case "equal" | "equal up to gauge":
                turn = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
                if kind == "equal":
                    return first
                return first.map(lambda u: LowRank(turn @ u.A, u.B @ turn.mT, u.scale))
            case "equal source" if side == "source":
                return first
            case "equal target" if side == "target":
                return first
            case "equal up to rounding" | "nearly equal" if side == "source":
                return first.map(shifted)
            case "collinear":
                return first.map(lambda update: update.scaled(0.5 + 0.1 * index))
            case "few distinct":
                return adapters[names[1 + index % 2]]
            case "zero":
                return first.map(lambda update: update.scaled(0.0))
            case "tiny source" if side == "source":
                return adapter.map(lambda update: update.scaled(1e-20))
            case "all but one site equal":
                site = Site(0, Role.Q)
                return replace(first, sites={**first.sites, site: adapter[site]})
            case _:
                return adapter

    sides = [
        {name: own(side, index, name) for index, name in enumerate(names)}
        for side in ("source", "target")
    ]
    return ZooPairs(*sides), names[1:]


DEGENERATE = (
    *("equal", "equal up to gauge", "equal source", "equal target", "equal up to rounding"),
    *("nearly equal", "collinear", "few distinct", "zero", "tiny source", "one", "two"),
    "all but one site equal",
)


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("space", ["delta", "factors"])
@pytest.mark.parametrize(
    "name",
    ["mean", "global_ridge", "pertensor_ridge", "pca_ridge", "pca_mlp"],
)
def test_anchors_that_are_alike_give_no_more_than_themselves_or_a_message(
    name: str, space: str, kind: str, noisy_zoo: ZooPairs, recipe: Callable[..., Any]
) -> None:
    zoo, names = _degenerate(noisy_zoo, kind)
    components = ["mapper.components=1"] if name.startswith("pca") else []
    mapper: Any = instantiate(recipe(name, f"mapper.space={space}", *components).mapper)
    generator = torch.Generator().manual_seed(0)
    for parameter in mapper.parameters():  # weights that start at zero could not show
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    if kind == "one" and components:
        with pytest.raises(ConfigurationError, match=r"add anchors, or choose mapper=mean"):
            mapper.fit(AnchorSet.of(zoo, names))
        return
    mapper.fit(AnchorSet.of(zoo, names))
    refused, largest = [], max(zoo.target[task].norm() for task in names)
    for query in (noisy_zoo.source["t00"], zoo.source[names[0]]):
        try:
            assert mapper.map(query).norm() <= 2.5 * largest + 1e-12
        except AdapterError as error:
            refused.append(str(error))
    assert all("differs from the anchors by far more than they do" in text for text in refused)
    assert not refused or kind in ("nearly equal", "tiny source")
    if kind in ("equal", "equal up to gauge") and space == "delta":
        assert relative_error(mapper.map(noisy_zoo.source["t00"]), zoo.target[names[0]]) < 1e-4


@pytest.mark.parametrize("anchors", range(2, 5))
def test_the_number_of_components_that_is_advised_works(
    anchors: int, noisy_zoo: ZooPairs, recipe: Callable[..., Any]
) -> None:
    chosen = AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1 : 1 + anchors])
    for name in ("pca_ridge", "pca_mlp"):
        mapper: Any = instantiate(recipe(name).mapper)
        with pytest.raises(ConfigurationError, match=r"set mapper\.components=") as refused:
            mapper.fit(chosen)
        advised = re.search(r"mapper\.components=\d+", str(refused.value))
        assert advised is not None
        again: Any = instantiate(recipe(name, advised[0]).mapper)
        again.fit(chosen)
        again.map(noisy_zoo.source["t00"])
