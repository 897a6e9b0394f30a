"""Rows on disk: captured once, taken up where they were left, in an order that the seed gives."""

import random
import string
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loraport.adapters import Role, Site
from loraport.data import AllEnds, TextCorpus
from loraport.mappers.activation_rows import ActivationRows
from loraport.mappers.corpus_mapper import ModelPair
from loraport.models import BaseModel
from loraport.models.activations import activations
from loraport.models.paired_capture import PairedCapture
from loraport.models.taps import Tap

TAPS = (
    [Tap.input(Site(1, Role.V)), Tap.output(Site(1, Role.V))],
    [Tap.input(Site(2, Role.V)), Tap.output(Site(2, Role.V))],
)
LABELS = ("source.1.q.input", "source.1.v.output", "target.2.q.input", "target.2.v.output")


class Letters:
    def texts(self, split: str) -> Iterator[str]:
        draw = random.Random(split)
        for _ in range(60):
            yield "".join(draw.choices(string.ascii_letters, k=30))


@pytest.fixture(scope="module")
def models(pico: Any, pico_target: BaseModel) -> ModelPair:
    return ModelPair(pico("llama"), pico_target)


@pytest.fixture(scope="module")
def corpus(models: ModelPair) -> TextCorpus:
    tokenizers = models.source.tokenizer, models.target.tokenizer
    return TextCorpus(
        Letters(),
        *tokenizers,
        tokens=700,
        held_out_tokens=250,
        batch_tokens=128,
        ends=AllEnds(),
    )


def rows_of(corpus: TextCorpus, models: ModelPair, folder: Path, seed: int = 0) -> ActivationRows:
    return ActivationRows(corpus, models, TAPS, folder, batch_rows=100, seed=seed)


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any model that runs fail the test."""

    def run(*_: object, **__: object) -> Iterator[object]:
        raise AssertionError("a model was run")
        yield

    monkeypatch.setattr(PairedCapture, "run", run)


def at(data: ActivationRows, epoch: int, rank: int = 0, devices: int = 1) -> ActivationRows:
    """Put the data into a trainer's hands."""
    trainer: Any = SimpleNamespace(current_epoch=epoch, global_rank=rank, world_size=devices)
    data.trainer = trainer
    return data


def test_rows_are_the_models_activations_at_aligned_tokens(
    corpus: TextCorpus, models: ModelPair, tmp_path: Path
) -> None:
    data = rows_of(corpus, models, tmp_path)
    batches = list(corpus.val_dataloader())
    found = data.all_rows("target.2.v.output", "held_out", 10**6)
    tap = Tap.output(Site(2, Role.V))
    expected = torch.cat(
        [activations(models.target.network, b.target, b.target_places, [tap])[tap] for b in batches]
    )
    assert torch.equal(found, expected.bfloat16().float())
    served = torch.cat([batch["target.2.v.output"] for batch in data.val_dataloader()])
    assert torch.equal(served, found)
    assert data.all_rows(LABELS[0], "train", 7).shape == (7, 32)


def test_a_finished_capture_is_never_run_again(
    corpus: TextCorpus, models: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rows_of(corpus, models, tmp_path)
    first.prepare_data()
    forbid(monkeypatch)
    again = rows_of(corpus, models, tmp_path)
    again.prepare_data()
    for label in LABELS:
        one, other = (data.all_rows(label, "train", 10**6) for data in (first, again))
        assert torch.equal(one, other)
    other_taps = ActivationRows(corpus, models, (TAPS[0][:1], TAPS[1][:1]), tmp_path, 100, 0)
    with pytest.raises(AssertionError, match="a model was run"):
        other_taps.prepare_data()


def test_a_capture_that_was_stopped_goes_on(
    corpus: TextCorpus, models: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_of(corpus, models, tmp_path / "whole")
    whole.prepare_data()
    run, seen = PairedCapture.run, []

    def stopped(self: PairedCapture, *args: Any, **options: Any) -> Iterator[Any]:
        for place, read in enumerate(run(self, *args, **options)):
            if place == 2:
                raise KeyboardInterrupt
            yield read

    def counted(self: PairedCapture, *args: Any, **options: Any) -> Iterator[Any]:
        seen.append(options["skip"])
        yield from run(self, *args, **options)

    monkeypatch.setattr(PairedCapture, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        rows_of(corpus, models, tmp_path / "broken").prepare_data()
    monkeypatch.setattr(PairedCapture, "run", counted)
    rest = rows_of(corpus, models, tmp_path / "broken")
    rest.prepare_data()
    assert seen == [2, 0]
    for label in LABELS:
        for split in ("train", "held_out"):
            one, other = (data.all_rows(label, split, 10**6) for data in (whole, rest))
            assert torch.equal(one, other)


def test_the_order_is_that_of_seed_and_epoch(
    corpus: TextCorpus, models: ModelPair, tmp_path: Path
) -> None:
    def served(seed: int, epoch: int) -> torch.Tensor:
        data = at(rows_of(corpus, models, tmp_path, seed), epoch)
        batches = list(data.train_dataloader())
        assert len(batches) == len(data.train_dataloader())
        pairs = [torch.cat([batch[LABELS[0]], batch[LABELS[2]]], dim=1) for batch in batches]
        return torch.cat(pairs)

    one = served(0, 1)
    assert torch.equal(one, served(0, 1))
    rows = {tuple(row) for row in one.tolist()}
    for seed, epoch in ((0, 0), (0, 2), (1, 1)):
        other = served(seed, epoch)
        assert not torch.equal(one, other)
        # The same pairs of rows, in another order.
        assert {tuple(row) for row in other.tolist()} == rows


def test_each_device_sees_other_rows_and_equally_many_batches(
    corpus: TextCorpus, models: ModelPair, tmp_path: Path
) -> None:
    shares, counts = [], set()
    for rank in range(3):
        data = at(rows_of(corpus, models, tmp_path), 1, rank, 3)
        batches = list(data.train_dataloader())
        counts.add((len(batches), len(data.train_dataloader())))
        shares.append(torch.cat([batch[LABELS[0]] for batch in batches]))
    assert len(counts) == 1
    assert len({len(share) for share in shares}) == 1
    every = torch.cat(shares)
    whole = rows_of(corpus, models, tmp_path).all_rows(LABELS[0], "train", 10**6)
    assert len(whole) - 3 < len(every) <= len(whole)
    assert len(every.unique(dim=0)) == len(every) - (len(whole) - len(whole.unique(dim=0)))
