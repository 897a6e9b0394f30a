"""Rows on disk: captured once, taken up where they were left, in an order that the seed gives."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loraport.adapters import Role, Site
from loraport.data import TextCorpus
from loraport.mappers.activation_rows import ActivationRows
from loraport.mappers.contract import random_text
from loraport.mappers.from_text import ModelPair
from loraport.models import capture
from loraport.models.hooks import Tap

TAPS = (
    [Tap.input(Site(1, Role.V)), Tap.output(Site(1, Role.V))],
    [Tap.input(Site(2, Role.V)), Tap.output(Site(2, Role.V))],
)
LABELS = ("source.1.q.input", "source.1.v.output", "target.2.q.input", "target.2.v.output")

Rows = Callable[..., ActivationRows]


@pytest.fixture(scope="module")
def corpus(models: ModelPair) -> TextCorpus:
    return random_text(models, tokens=700, held_out_tokens=250, batch_tokens=128)


@pytest.fixture(scope="module")
def rows_in(corpus: TextCorpus, models: ModelPair) -> Rows:
    def make(folder: Path, seed: int = 0, **trainer: int) -> ActivationRows:
        """Of a trainer at some epoch and on some device, where these are given."""
        data: Any = ActivationRows(corpus, models, TAPS, folder, batch_rows=100, seed=seed)
        if trainer:
            data.trainer = SimpleNamespace(
                **{"current_epoch": 1, "global_rank": 0, "world_size": 1, **trainer}
            )
        return data

    return make


@pytest.fixture(scope="module")
def folder(rows_in: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a whole capture lies."""
    folder = tmp_path_factory.mktemp("rows")
    rows_in(folder).prepare_data()
    return folder


def test_rows_are_the_models_activations_at_aligned_tokens(
    rows_in: Rows, corpus: TextCorpus, models: ModelPair, folder: Path
) -> None:
    data, tap = rows_in(folder), Tap.output(Site(2, Role.V))
    found = data.all_rows("target.2.v.output", "held_out", 10**6)
    expected = [
        capture.readings(models.target.network, b.target, b.target_places, [tap])[tap]
        for b in corpus.val_dataloader()
    ]
    assert torch.equal(found, torch.cat(expected).bfloat16().float())
    served = torch.cat([batch["target.2.v.output"] for batch in data.val_dataloader()])
    assert torch.equal(served, found)
    assert data.all_rows(LABELS[0], "train", 7).shape == (7, 32)


def test_a_capture_that_was_stopped_goes_on_and_a_finished_one_is_not_run_again(
    rows_in: Rows,
    corpus: TextCorpus,
    models: ModelPair,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, seen = capture.paired_readings, list[int]()

    def stopped(*args: Any) -> Iterator[Any]:
        for index, read in enumerate(run(*args)):
            if index == 2:
                raise KeyboardInterrupt
            yield read

    def counted(*args: Any) -> Iterator[Any]:
        seen.append(len(args[2]))
        yield from run(*args)

    monkeypatch.setattr(capture, "paired_readings", stopped)
    with pytest.raises(KeyboardInterrupt):
        rows_in(tmp_path).prepare_data()
    monkeypatch.setattr(capture, "paired_readings", counted)
    rows_in(tmp_path).prepare_data()
    train, held_out = len(corpus.train_dataloader()), len(corpus.val_dataloader())
    assert seen == [train - 2, held_out]
    whole, rest = rows_in(folder), rows_in(tmp_path)
    for label in LABELS:
        for split in ("train", "held_out"):
            one, other = (data.all_rows(label, split, 10**6) for data in (whole, rest))
            assert torch.equal(one, other)
    assert seen == [train - 2, held_out]
    ActivationRows(corpus, models, (TAPS[0][:1], TAPS[1][:1]), folder, 100, 0).prepare_data()
    assert seen == [train - 2, held_out, train, held_out]


def test_the_order_is_that_of_seed_and_epoch(rows_in: Rows, folder: Path) -> None:
    def served(seed: int, epoch: int) -> torch.Tensor:
        loader = rows_in(folder, seed, current_epoch=epoch).train_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader)
        return torch.cat([torch.cat([b[LABELS[0]], b[LABELS[2]]], dim=1) for b in batches])

    one = served(0, 1)
    assert torch.equal(one, served(0, 1))
    rows = {tuple(row) for row in one.tolist()}
    for seed, epoch in ((0, 0), (1, 1)):
        other = served(seed, epoch)
        assert not torch.equal(one, other)
        # The same pairs of rows, in another order.
        assert {tuple(row) for row in other.tolist()} == rows


def test_each_device_sees_other_rows_and_equally_many_batches(rows_in: Rows, folder: Path) -> None:
    shares, counts = [], set()
    for rank in range(3):
        loader = rows_in(folder, global_rank=rank, world_size=3).train_dataloader()
        batches = list(loader)
        counts.add((len(batches), len(loader)))
        shares.append(torch.cat([batch[LABELS[0]] for batch in batches]))
    assert len(counts) == 1
    assert len({len(share) for share in shares}) == 1
    every = torch.cat(shares)
    whole = rows_in(folder).all_rows(LABELS[0], "train", 10**6)
    assert len(whole) - 3 < len(every) <= len(whole)
    assert len(every.unique(dim=0)) == len(every) - (len(whole) - len(whole.unique(dim=0)))
