import pytest
import torch

from loraport.adapters import Role, Site
from loraport.data.aligned_batch import AlignedBatch, TokenBatch
from loraport.models import BaseModel
from loraport.models.activations import activations
from loraport.models.paired_capture import PairedCapture
from loraport.models.taps import Tap

SOURCE, TARGET = Tap.residual(1), Tap.input(Site(2, Role.V))


def batches(count: int = 4) -> list[AlignedBatch]:
    """Batches of different sizes, whose places are paired in no simple way."""
    generator = torch.Generator().manual_seed(0)

    def side(texts: int, tokens: int) -> TokenBatch:
        ids = torch.randint(2, 20, (texts, tokens), generator=generator)
        return TokenBatch(ids, torch.ones_like(ids))

    def one(number: int) -> AlignedBatch:
        rows = 5 + number
        return AlignedBatch(
            side(2, 8),
            side(2, 20),
            torch.randperm(16, generator=generator)[:rows],
            torch.randperm(40, generator=generator)[:rows],
            torch.arange(rows) + 10 * number,
        )

    return [one(number) for number in range(count)]


def test_both_models_are_read_at_their_places(
    pico_source: BaseModel, pico_target: BaseModel
) -> None:
    capture = PairedCapture(pico_source.network, pico_target.network)
    read = list(capture.run(batches(), [SOURCE], [TARGET]))
    assert len(read) == 4
    for found, batch in zip(read, batches(), strict=True):
        source = activations(pico_source.network, batch.source, batch.source_places, [SOURCE])
        target = activations(pico_target.network, batch.target, batch.target_places, [TARGET])
        assert torch.equal(found.source[SOURCE], source[SOURCE])
        assert torch.equal(found.target[TARGET], target[TARGET])
        assert torch.equal(found.batch.documents, batch.documents)
        assert len(found.source[SOURCE]) == len(found.target[TARGET]) == len(batch.documents)


def test_skipped_batches_are_not_run(
    pico_source: BaseModel, pico_target: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    def noting(network: object, tokens: TokenBatch, places: torch.Tensor, taps: object) -> object:
        ran.append(len(places))
        return {}

    monkeypatch.setattr("loraport.models.paired_capture.readings", noting)
    capture = PairedCapture(pico_source.network, pico_target.network)
    done: list[int] = []
    read = list(capture.run(batches(), [SOURCE], [TARGET], skip=2, progress=done.append))
    assert ran == [7, 7, 8, 8]
    assert [len(found.batch.documents) for found in read] == [7, 8]
    assert done == [2, 3, 4]


def test_progress_follows_the_receiver(pico_source: BaseModel, pico_target: BaseModel) -> None:
    done: list[int] = []
    capture = PairedCapture(pico_source.network, pico_target.network)
    run = capture.run(batches(), [SOURCE], [TARGET], progress=done.append)
    next(run)
    assert done == []
    next(run)
    assert done == [1]
    list(run)
    assert done == [1, 2, 3, 4]
