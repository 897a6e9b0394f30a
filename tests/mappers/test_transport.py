import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.exceptions import ConfigurationError
from loraport.mappers import load_mapper
from loraport.mappers.corpus_mapper import ModelPair
from loraport.mappers.transport import TransportMapper
from loraport.models import BaseModel
from loraport.models.gradients import readings
from loraport.models.statistics_store import StatisticsStore

FITTING = "loraport.mappers.linear_corpus_mapper"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer.*"),
]


@pytest.fixture
def models(pico: Callable[[str], BaseModel], pico_target: BaseModel) -> ModelPair:
    return ModelPair(pico("llama"), pico_target)


@pytest.fixture
def adapter(random_adapter: Callable[..., LoraAdapter], models: ModelPair) -> LoraAdapter:
    return random_adapter(models.source, roles=(Role.Q, Role.V))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the batches that the models run on, both models of a batch apart."""
    runs: list[int] = []

    def counting(*arguments: Any) -> Any:
        runs.append(1)
        return readings(*arguments)

    monkeypatch.setattr(f"{FITTING}.readings", counting)
    return runs


def test_planted_linear_change_of_basis_is_recovered(
    twisted: Callable[[torch.Tensor], ModelPair],
    fit_on_text: Callable[..., Path],
    random_adapter: Callable[..., LoraAdapter],
) -> None:
    generator = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    pair = twisted(turn)
    mapper = TransportMapper(strengths=[1e-9])
    fit_on_text(mapper, pair)
    given = random_adapter(pair.source, roles=(Role.Q, Role.V))
    # x_T = x_S Q in row convention, so that A_T = A_S Q; outputs are the same.
    expected = given.map(lambda u: LowRank(u.A @ turn, u.B, u.scale))
    assert relative_error(mapper.map(given), expected) < 1e-4
    wrong = given.map(lambda u: LowRank(u.A @ turn.mT, u.B, u.scale))
    assert relative_error(mapper.map(given), wrong) > 1


def test_rope_blocks_keep_pairs_of_dimensions_apart(
    models: ModelPair,
    fit_on_text: Callable[..., Path],
    random_adapter: Callable[..., LoraAdapter],
) -> None:
    mapper = TransportMapper(roles=["q", "k", "v"], rope_blocks=True)
    fit_on_text(mapper, models)
    plain = TransportMapper(roles=["q", "k", "v"])
    fit_on_text(plain, models)
    for (source, target), writer in mapper.maps.writers.items():
        same = torch.equal(writer.matrix, plain.maps.writers[source, target].matrix)
        assert same == (source.role is Role.V)
        if source.role is not Role.V:
            assert writer.strength is None
            # Two entries a row: a pair reads one pair.
            assert (writer.matrix != 0).sum(dim=1).tolist() == [2] * len(writer.matrix)
    for pair, reader in mapper.maps.readers.items():
        assert torch.equal(reader.matrix, plain.maps.readers[pair].matrix)
    adapter = random_adapter(models.source, roles=(Role.Q, Role.K, Role.V))
    assert mapper.map(adapter).norm() > 0


def test_blocks_of_layers_give_the_maps_of_one_epoch(
    models: ModelPair, adapter: LoraAdapter, fit_on_text: Callable[..., Path], counted: list[int]
) -> None:
    whole, blocks = TransportMapper(), TransportMapper(memory_gb=1e-6)
    fit_on_text(whole, models)
    once = len(counted)
    fit_on_text(blocks, models, max_epochs=7)
    assert len(counted) == once + 3 * once
    error = relative_error(blocks.map(adapter), whole.map(adapter))
    assert error < 1e-5


def test_finished_statistics_are_not_gathered_again(
    models: ModelPair,
    adapter: LoraAdapter,
    fit_on_text: Callable[..., Path],
    counted: list[int],
    tmp_path: Path,
) -> None:
    store = StatisticsStore(tmp_path)
    first, second = TransportMapper(), TransportMapper(strengths=[1.0])
    fit_on_text(first, models, store=store)
    once = len(counted)
    fit_on_text(second, models, store=store)
    assert len(counted) == once
    fit_on_text(TransportMapper(), models, store=store, tokens=2000)
    assert len(counted) > once
    again = TransportMapper()
    fit_on_text(again, models, store=store)
    assert again.map(adapter).content_hash() == first.map(adapter).content_hash()


@pytest.mark.parametrize("stop", [5, 9])
def test_stopped_fit_goes_on_and_ends_in_the_same_bits(
    stop: int,
    models: ModelPair,
    adapter: LoraAdapter,
    fit_on_text: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    whole = TransportMapper()
    fit_on_text(whole, models)
    runs: list[int] = []

    def failing(*arguments: Any) -> Any:
        runs.append(1)
        if len(runs) == stop:
            raise KeyboardInterrupt
        return readings(*arguments)

    monkeypatch.setattr(f"{FITTING}.readings", failing)
    store = StatisticsStore(tmp_path, seconds=0.0)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit_on_text(TransportMapper(), models, store=store)
    mapper = TransportMapper()
    fit_on_text(mapper, models, store=store)
    assert mapper.map(adapter).content_hash() == whole.map(adapter).content_hash()
    total = len(runs)
    fit_on_text(TransportMapper(), models)
    # Of the stopped batch alone both models may have to run again.
    assert total - stop < len(runs) - total <= total


def test_partly_fitted_checkpoint_is_no_fitted_mapper(
    models: ModelPair, fit_on_text: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    mapper = TransportMapper()
    checkpoint = fit_on_text(mapper, models)
    assert load_mapper(checkpoint).fitted
    mapper.maps.writers.pop((Site(0, Role.V), Site(0, Role.V)))
    assert not mapper.fitted
    saved: dict[str, Any] = {}
    mapper.on_save_checkpoint(saved)
    fresh = TransportMapper()
    fresh.on_load_checkpoint(saved)
    assert not fresh.fitted
    assert fresh.maps.writers.keys() == mapper.maps.writers.keys()


@pytest.mark.parametrize("strengths", [[], [0.0], [-1.0], [float("inf")]])
def test_impossible_strengths_are_refused(strengths: list[float]) -> None:
    with pytest.raises(ConfigurationError, match=r"mapper\.strengths is \["):
        TransportMapper(strengths=strengths)


def test_other_data_is_refused(models: ModelPair) -> None:
    mapper = TransportMapper()
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        mapper.data  # noqa: B018


@pytest.mark.slow
def test_two_devices_fit_what_one_fits(
    models: ModelPair, adapter: LoraAdapter, tmp_path: Path
) -> None:
    for side, model in (("source", models.source), ("target", models.target)):
        model.network.save_pretrained(tmp_path / side)
        model.tokenizer.save_pretrained(tmp_path / side)
    script = Path(__file__).with_name("ddp_text_fit.py")
    one, two = tmp_path / "one.ckpt", tmp_path / "two.ckpt"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(two), "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "MEMBER: 2/2" in done.stderr
    runpy.run_path(str(script))["main"](str(tmp_path), str(one), "1")
    expected = load_mapper(one).map(adapter)
    assert relative_error(load_mapper(two).map(adapter), expected) < 1e-4
