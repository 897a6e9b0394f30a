import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hydra.utils import get_class
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from loraport.adapters import (
    AdapterStack,
    LoraAdapter,
    LowRank,
    Role,
    Site,
    relative_error,
    write_adapter,
)
from loraport.data import AnchorBatch, AnchorPairs, AnchorSet, ZooPairs
from loraport.exceptions import AdapterError, ConfigurationError
from loraport.mappers import load_mapper
from loraport.mappers.from_anchors import STRENGTHS, checked_strengths, paired_sites
from loraport.mappers.ridge import GlobalRidgeMapper

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer.*"),
    pytest.mark.filterwarnings("ignore:.*but have no `validation_step`.*"),
]


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


def test_scale_of_the_query_counts(noisy_zoo: ZooPairs) -> None:
    mapper = GlobalRidgeMapper(strengths=[0.01])
    mapper.fit(AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1:]))
    query = noisy_zoo.source["t00"]
    folded = query.map(lambda update: LowRank(update.A, update.scale * update.B))
    larger = query.map(lambda update: update.scaled(1.5))
    expected = mapper.map(query)
    assert relative_error(mapper.map(folded), expected) < 1e-5
    assert relative_error(mapper.map(larger), expected) > 0.05


def trainer() -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_an_epoch_of_any_batches_fits_on_the_training_anchors(
    batch_size: int, noisy_zoo: ZooPairs
) -> None:
    data = AnchorPairs(noisy_zoo, ["t00"], validation=0.3, batch_size=batch_size)
    mapper, expected = GlobalRidgeMapper(), GlobalRidgeMapper()
    trainer().fit(mapper, datamodule=data)
    left_out = data.validation_anchors
    assert left_out is not None
    assert mapper.report()["anchors"] == [
        name for name in noisy_zoo.source if name not in ("t00", *left_out.names)
    ]
    expected.fit(data.training_anchors)
    query = noisy_zoo.source["t00"]
    assert mapper.map(query).content_hash() == expected.map(query).content_hash()


def test_other_data_is_refused() -> None:
    batches: DataLoader[int] = DataLoader(
        cast("Dataset[int]", range(3)), collate_fn=lambda rows: AnchorBatch(torch.tensor(rows))
    )
    with pytest.raises(RuntimeError, match=r"GlobalRidgeMapper trains on AnchorPairs, not on None"):
        trainer().fit(GlobalRidgeMapper(), batches)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ridge.GlobalRidgeMapper", "pca.PCARidgeMapper"])
def test_two_devices_fit_what_one_fits(name: str, noisy_zoo: ZooPairs, tmp_path: Path) -> None:
    for side, adapters in (("source", noisy_zoo.source), ("target", noisy_zoo.target)):
        for task, adapter in adapters.items():
            write_adapter(adapter, tmp_path / side / task)
    script, checkpoint = Path(__file__).with_name("ddp_fit.py"), tmp_path / "mapper.ckpt"
    kind = f"loraport.mappers.{name}"
    done = subprocess.run(
        [sys.executable, str(script), kind, str(tmp_path), str(checkpoint)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "MEMBER: 2/2" in done.stderr
    fitted, expected = load_mapper(checkpoint), get_class(kind)()
    expected.fit(AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1:]))
    assert fitted.report() == expected.report()
    query = noisy_zoo.source["t00"]
    assert relative_error(fitted.map(query), expected.map(query)) < 1e-6


SITE = Site(1, Role.V)


def test_delta_space_compares_updates(
    noisy_zoo: ZooPairs, dense: Callable[[AdapterStack, Site], Tensor]
) -> None:
    stack, mapper = AdapterStack.of(noisy_zoo.target), GlobalRidgeMapper("delta")
    rows = dense(stack, SITE)
    torch.testing.assert_close(mapper.gram(stack, stack, SITE), rows @ rows.mT)


def test_factor_space_compares_factors(noisy_zoo: ZooPairs) -> None:
    stack, mapper = AdapterStack.of(noisy_zoo.target), GlobalRidgeMapper("factors")
    rows = torch.cat([stack[SITE].A.flatten(1), stack[SITE].B.flatten(1)], dim=1).double()
    torch.testing.assert_close(mapper.gram(stack, stack, SITE), rows @ rows.mT)


def test_unknown_space_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"mapper\.space is 'flat'.*delta, factors"):
        GlobalRidgeMapper("flat")


class TestAdapterOfAnotherRank:
    def adapters(self, zoo: ZooPairs) -> tuple[AnchorSet, LoraAdapter]:
        query = zoo.source["t00"].map(lambda update: update.truncated(2).matrix)
        return AnchorSet.of(zoo, list(zoo.source)[1:]), query

    def test_updates_can_be_compared(self, noisy_zoo: ZooPairs) -> None:
        anchors, query = self.adapters(noisy_zoo)
        mapper: Any = GlobalRidgeMapper()
        mapper.fit(anchors)
        assert all(update.rank == 4 for update in mapper.map(query).values())

    def test_factors_cannot(self, noisy_zoo: ZooPairs) -> None:
        anchors, query = self.adapters(noisy_zoo)
        mapper: Any = GlobalRidgeMapper("factors")
        mapper.fit(anchors)
        with pytest.raises(ConfigurationError, match=r"rank 2 with factors of rank 4.*space=delta"):
            mapper.map(query)


@pytest.mark.parametrize(
    ("strengths", "finite"),
    [
        *(([], False), ([0.0, 1.0], False), ([1.0, -0.1], False), ([float("nan")], False)),
        *(([], True), ([0.0], True), ([-1.0], True), ([1.0, float("inf")], True)),
    ],
)
def test_impossible_strengths_are_refused(strengths: list[float], finite: bool) -> None:
    assert checked_strengths(list(STRENGTHS)) == STRENGTHS
    with pytest.raises(ConfigurationError, match=r"mapper\.strengths is \[.*one or more positive"):
        checked_strengths(strengths, finite=finite)
