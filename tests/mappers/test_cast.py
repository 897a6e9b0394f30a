"""CAST on pico models: better than linear where that is due, the same bits, refusals, stopping."""

import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from loraport.adapters import LoraAdapter, Role, Site
from loraport.alignment.layer_matching import LayerPairing
from loraport.data import AllEnds, TextCorpus
from loraport.exceptions import ConfigurationError
from loraport.mappers import load_mapper
from loraport.mappers.cast import CastMapper
from loraport.mappers.from_text import ModelPair
from loraport.models import BaseModel

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*`IterableDataset` has `__len__` defined.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
PAIRING = LayerPairing.one_to_one(2, (0, 1, 1))


class Letters:
    def texts(self, split: str) -> Iterator[str]:
        draw = random.Random(split)
        for _ in range(200):
            yield "".join(draw.choices(string.ascii_letters, k=40))


@pytest.fixture(scope="module")
def models(pico: Callable[[str], BaseModel], pico_target: BaseModel) -> ModelPair:
    return ModelPair(pico("llama"), pico_target)


@pytest.fixture(scope="module")
def corpus(models: ModelPair) -> TextCorpus:
    return TextCorpus(
        Letters(),
        models.source.tokenizer,
        models.target.tokenizer,
        tokens=2500,
        held_out_tokens=600,
        batch_tokens=1024,
        ends=AllEnds(),
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where activations are kept from test to test."""
    return tmp_path_factory.mktemp("rows")


Fit = Callable[..., tuple[CastMapper, Trainer]]


@pytest.fixture
def fit(models: ModelPair, corpus: TextCorpus, rows: Path) -> Fit:
    """Train a mapper of q and v for some epochs."""

    def run(
        epochs: int = 2,
        going_on: Path | None = None,
        callbacks: tuple[Callback, ...] = (),
        **options: Any,
    ) -> tuple[CastMapper, Trainer]:
        mapper = CastMapper(**{"hidden": 16, "batch_rows": 256, "export_rows": 512, **options})
        mapper.learn_from(models, PAIRING)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
        )
        data = mapper.data_module(corpus, rows)
        trainer.fit(mapper, datamodule=data, ckpt_path=going_on and str(going_on))
        return mapper, trainer

    return run


@pytest.fixture
def adapter(random_adapter: Callable[..., LoraAdapter], models: ModelPair) -> LoraAdapter:
    return random_adapter(models.source, roles=(Role.Q, Role.V))


def weights(mapper: CastMapper) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in mapper.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Kept(Callback):
    """Saves the state behind an epoch, as a training that is stopped then has left it."""

    def __init__(self, path: Path, epoch: int) -> None:
        self.path, self.epoch = path, epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        del pl_module
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


def test_one_that_went_on_ends_as_one_that_was_never_stopped(fit: Fit, tmp_path: Path) -> None:
    whole, _ = fit(epochs=3, callbacks=(Kept(tmp_path / "last.ckpt", 1),))
    rest, trainer = fit(epochs=3, going_on=tmp_path / "last.ckpt")
    assert trainer.global_step == 3 * trainer.num_training_batches
    assert_same(weights(whole), weights(rest))
    assert whole.report() == rest.report()


def test_a_checkpoint_gives_the_same_cartridge(
    fit: Fit, adapter: LoraAdapter, tmp_path: Path
) -> None:
    mapper, trainer = fit(rank=5)
    trainer.save_checkpoint(tmp_path / "mapper.ckpt", weights_only=True)
    read = load_mapper(tmp_path / "mapper.ckpt")
    assert isinstance(read, CastMapper)
    assert_same(weights(mapper), weights(read))
    assert read.cartridge(adapter).content_hash() == mapper.cartridge(adapter).content_hash()
    made = read.map(adapter)
    assert {update.rank for update in made.values()} == {5}
    assert set(made) == set(mapper.cartridge(adapter).acts_at())


def test_training_beats_the_linear_start_where_the_relation_bends(
    fit: Fit, models: ModelPair, corpus: TextCorpus, rows: Path
) -> None:
    """What one site writes is made a bent function of what its source writes, on disk."""
    mapper = CastMapper(["v"], hidden=64, cycle=0.0, behaviour=0.0, lr=1e-2, batch_rows=256)
    mapper.learn_from(models, PAIRING)
    data: Any = mapper.data_module(corpus, rows / "bent")
    data.prepare_data()
    bend = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
    for split, cache in zip(("train", "held_out"), data.open(), strict=True):
        x = data.all_rows("source.1.v.output", split, 10**6)
        scaled = x * (x.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()
        y = x @ bend / 4 + 2 * (scaled @ bend).abs() * x.norm(dim=1, keepdim=True) / 4
        file = cache.folder / "target.2.v.output.bf16"
        content = y.bfloat16().contiguous().view(torch.int16).numpy().tobytes()
        assert len(content) == file.stat().st_size
        file.write_bytes(content)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=12,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(mapper, datamodule=mapper.data_module(corpus, rows / "bent"))
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


def test_it_stops_when_held_out_text_is_explained_no_better(fit: Fit) -> None:
    stop = EarlyStopping("val/loss", patience=2)
    mapper, trainer = fit(epochs=60, callbacks=(stop,), lr=3e-2, hidden=64)
    assert stop.stopped_epoch > 0
    assert trainer.current_epoch < 59
    assert mapper.report()["reconstruction"]["input_r2"] > 0


def test_a_loss_that_is_no_number_is_said(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match=r"loss is (nan|inf) .* mapper\.lr=1e\+20"):
        fit(lr=1e20)


def test_q_and_v_share_an_input_projection_and_a_cartridge_trains_nothing(
    fit: Fit, adapter: LoraAdapter
) -> None:
    mapper, _ = fit(epochs=1)
    cartridge = mapper.cartridge(adapter)
    q, v = (cartridge.acts_at()[Site(2, role)][0] for role in (Role.Q, Role.V))
    assert q.input_projection is v.input_projection
    assert not any(weight.requires_grad for weight in cartridge.parameters())
    assert all(weight.requires_grad for weight in mapper.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": -1}, r"mapper\.hidden is -1; it takes 0 or more"),
        ({"batch_rows": 0}, r"mapper\.batch_rows is 0; it takes 1 or more"),
        ({"export_rows": 8}, r"mapper\.export_rows is 8; it takes 32 or more"),
        ({"rank": 0}, r"mapper\.rank is 0; it takes 1 or more"),
        ({"lr": 0.0}, r"mapper\.lr is 0\.0; it takes a positive number"),
        ({"cycle": -0.1}, r"mapper\.cycle is -0\.1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CastMapper(**options)
