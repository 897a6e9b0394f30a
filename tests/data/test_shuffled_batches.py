import torch

from loraport.data.answers import LengthBuckets, TokenizedAnswer
from loraport.data.shuffled_batches import seeded_batches

LENGTHS = [(7 * place) % 41 + 1 for place in range(150)]


def test_each_epoch_holds_every_row_once_in_another_order() -> None:
    batches = seeded_batches(LENGTHS, batch_size=4, epochs=2, seed=1)
    assert [len(batch) for batch in batches].count(4) == 2 * 37
    first, second = batches[:38], batches[38:]
    for epoch in (first, second):
        assert sorted(place for batch in epoch for place in batch) == list(range(150))
    assert first != second


def test_order_depends_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    one = seeded_batches(LENGTHS, batch_size=4, epochs=2, seed=1)
    torch.rand(3)
    assert seeded_batches(LENGTHS, batch_size=4, epochs=2, seed=1) == one
    assert seeded_batches(LENGTHS, batch_size=4, epochs=2, seed=2) != one
    torch.set_rng_state(state)
    seeded_batches(LENGTHS, batch_size=4, epochs=2, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_of_like_length_are_together_as_in_the_training_of_anchors() -> None:
    rows = [TokenizedAnswer([place] * length, [0]) for place, length in enumerate(LENGTHS)]
    buckets = LengthBuckets(rows, batch_size=4, pad_token=999, seed=1)
    expected = [batch.input_ids[:, -1].tolist() for batch in buckets]
    assert seeded_batches(LENGTHS, batch_size=4, epochs=1, seed=1) == expected


def test_nothing_makes_no_batches() -> None:
    assert seeded_batches(LENGTHS, batch_size=4, epochs=0, seed=1) == []
    assert seeded_batches([], batch_size=4, epochs=1, seed=1) == []
