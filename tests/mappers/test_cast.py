"""CAST on pico models: better than linear where that is due, the same bits, refusals, stopping."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from loraport.adapters import LoraAdapter, Role, Site, cosine
from loraport.alignment.layer_matching import LayerPairing
from loraport.data import TextCorpus
from loraport.exceptions import ConfigurationError
from loraport.mappers import load_mapper
from loraport.mappers.cast import CastMapper
from loraport.mappers.contract import random_text, trained
from loraport.mappers.from_text import ModelPair

PAIRING = LayerPairing.one_to_one(2, (0, 1, 1))


@pytest.fixture(scope="module")
def corpus(models: ModelPair) -> TextCorpus:
    return random_text(models, tokens=2000, held_out_tokens=500)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where activations are kept from test to test."""
    return tmp_path_factory.mktemp("rows")


Fit = Callable[..., CastMapper]


@pytest.fixture(scope="module")
def fit(models: ModelPair, corpus: TextCorpus, rows: Path) -> Fit:
    """Train a mapper of v for some epochs, and save it."""

    def run(
        checkpoint: Path,
        epochs: int,
        callbacks: tuple[Callback, ...] = (),
        resume: Path | None = None,
        precision: Any = "32-true",
        **options: Any,
    ) -> CastMapper:
        small = {"roles": ["v"], "hidden": 8, "batch_rows": 512, "export_rows": 512}
        mapper = CastMapper(**{**small, **options})
        mapper.learn_from(models, PAIRING)
        data = mapper.data_module(corpus, rows)
        how: Any = {"max_epochs": epochs, "callbacks": list(callbacks), "precision": precision}
        trained(mapper, data, checkpoint, resume, **how)
        return mapper

    return run


def assert_same(one: CastMapper, other: CastMapper) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert one.report() == other.report()


class Kept(Callback):
    """Saves the state behind an epoch, as a training that is stopped then has left it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        del pl_module
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def test_one_that_went_on_ends_as_one_that_was_never_stopped(fit: Fit, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole.ckpt", 2, (Kept(tmp_path / "first.ckpt"),))
    again = (Kept(tmp_path / "again.ckpt"),)
    rest = fit(tmp_path / "rest.ckpt", 2, again, resume=tmp_path / "first.ckpt")
    assert not (tmp_path / "again.ckpt").exists()  # the first epoch was not run again
    assert_same(whole, rest)


def test_a_checkpoint_gives_the_same_cartridge_whose_heads_take_no_gradient(
    fit: Fit, random_adapter: Callable[..., LoraAdapter], models: ModelPair, tmp_path: Path
) -> None:
    mapper = fit(tmp_path / "mapper.ckpt", 1, rank=5, roles=["q", "v"])
    read = load_mapper(tmp_path / "mapper.ckpt")
    assert isinstance(read, CastMapper)
    assert_same(mapper, read)
    given = random_adapter(models.source, roles=(Role.Q, Role.V))
    cartridge, made = mapper.cartridge(given), read.map(given)
    assert read.cartridge(given).content_hash() == cartridge.content_hash()
    assert {update.rank for update in made.values()} == {5}
    assert set(made) == set(cartridge.acts_at())
    q, v = (cartridge.acts_at()[Site(2, role)][0] for role in (Role.Q, Role.V))
    assert q.input_projection is v.input_projection
    assert not any(weight.requires_grad for weight in cartridge.parameters())
    assert all(weight.requires_grad for weight in mapper.parameters())


def test_training_beats_the_linear_start_where_the_relation_bends(
    models: ModelPair, corpus: TextCorpus, rows: Path, tmp_path: Path
) -> None:
    """What one site writes is made a bent function of what its source writes, on disk."""
    mapper = CastMapper(["v"], hidden=64, cycle=0.0, behaviour=0.0, lr=1e-2, batch_rows=256)
    mapper.learn_from(models, PAIRING)
    data: Any = mapper.data_module(corpus, rows / "bent")
    data.prepare_data()
    bend = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
    for split, cache in data.caches.items():
        x = data.all_rows("source.1.v.output", split, 10**6)
        scaled = x * (x.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()
        y = x @ bend / 4 + 2 * (scaled @ bend).abs() * x.norm(dim=1, keepdim=True) / 4
        file = cache.folder / "target.2.v.output.bf16"
        content = y.bfloat16().contiguous().view(torch.int16).numpy().tobytes()
        assert len(content) == file.stat().st_size
        file.write_bytes(content)
    trained(mapper, data, tmp_path / "bent.ckpt", max_epochs=10)
    found = mapper.report()["fits"]["2.v"]["1.v"]
    assert found["output_r2"] > found["linear_output_r2"] + 0.1
    # Said of the heads as they are, by a computation of its own.
    heads = mapper.heads
    assert heads is not None
    x, y = (
        data.all_rows(f"{label}.v.output", "held_out", 10**6) for label in ("source.1", "target.2")
    )
    with torch.no_grad():
        error = y - heads.output_heads(Site(1, Role.V), Site(2, Role.V)).head(x)
    missed = (error - error.mean(dim=0)).square().sum()
    r2 = 1 - missed / (y - y.mean(dim=0)).square().sum()
    assert found["output_r2"] == pytest.approx(float(r2), abs=1e-4)


def test_what_is_measured_does_not_go_by_the_trainers_precision(
    fit: Fit, random_adapter: Callable[..., LoraAdapter], models: ModelPair, tmp_path: Path
) -> None:
    """Mixed precision changes the steps of the heads a little, and nothing that is not a step."""
    given = random_adapter(models.source, roles=(Role.V,))
    exact, mixed = (
        fit(tmp_path / f"{precision}.ckpt", 1, precision=precision, hidden=0, lr=1e-9)
        for precision in ("32-true", "bf16-mixed")
    )
    ours, theirs = (mapper.report()["fits"] for mapper in (exact, mixed))
    for target, feeds in ours.items():
        for source, facts in feeds.items():
            assert theirs[target][source] == pytest.approx(facts, abs=1e-6)
    assert cosine(exact.map(given), mixed.map(given)) == pytest.approx(1, abs=1e-6)


def test_it_stops_when_held_out_text_is_explained_no_better(fit: Fit, tmp_path: Path) -> None:
    stop = EarlyStopping("val/loss", patience=1)
    mapper = fit(tmp_path / "mapper.ckpt", 30, (stop,), lr=0.3, behaviour=0.0)
    assert 0 < stop.stopped_epoch < 29
    assert mapper.report()["reconstruction"]["linear_input_r2"] > 0


def test_a_loss_that_is_no_number_is_said(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"loss is (nan|inf) .* mapper\.lr=1e\+20"):
        fit(tmp_path / "mapper.ckpt", 2, lr=1e20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": -1}, r"mapper\.hidden is -1; it takes 0 or more"),
        ({"export_rows": 8}, r"mapper\.export_rows is 8; it takes 32 or more"),
        ({"rank": 0}, r"mapper\.rank is 0; it takes 1 or more"),
        ({"lr": 0.0}, r"mapper\.lr is 0\.0; it takes a positive number"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CastMapper(**options)
