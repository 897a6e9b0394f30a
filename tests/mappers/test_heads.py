"""All heads of a pair: which there are, what they share, and what each space is called."""

from collections.abc import Callable

import pytest
import torch

from loraport.adapters import Role, Site
from loraport.alignment.layer_pairing import LayerPairing
from loraport.mappers.heads import Heads, read_label, written_label
from loraport.mappers.pair_frame import PairFrame
from loraport.models import BaseModel
from loraport.models.taps import Tap

ROLES = (Role.Q, Role.V, Role.DOWN)
# The last layer is fed by both of the source's.
PAIRING = LayerPairing(2, (((0, 1.0),), ((1, 1.0),), ((0, 0.5), (1, 0.5))))


@pytest.fixture(scope="module")
def frame(pico: Callable[[str], BaseModel], pico_target: BaseModel) -> PairFrame:
    return PairFrame.of(pico("llama"), pico_target, PAIRING, ROLES)


@pytest.fixture
def heads(frame: PairFrame) -> Heads:
    return Heads(frame, hidden=4, both=True, gradients=True, seed=0)


def test_every_feed_has_a_writer_and_every_pair_of_inputs_a_reader(
    heads: Heads, frame: PairFrame
) -> None:
    assert len(heads.pairs) == 4 * len(ROLES)
    assert len(heads.writers) == 4 * len(ROLES)
    assert len(heads.readers) == 4 * 2  # q and v read the same
    q, v, down = ((Site(1, role), Site(2, role)) for role in ROLES)
    assert heads.reader(*q) is heads.reader(*v)
    assert heads.reader(*q) is not heads.reader(*down)
    assert heads.writer(*q) is not heads.writer(*v)
    for source, target in heads.pairs:
        (out_s, in_s), (out_t, in_t) = frame.source.shapes[source], frame.target.shapes[target]
        reader, writer = heads.reader(source, target), heads.writer(source, target)
        assert tuple(reader.head.skip.weight.shape) == (in_s, in_t)
        assert tuple(writer.head.skip.weight.shape) == (out_t, out_s)
        assert reader.back is not None
        assert tuple(reader.back.skip.weight.shape) == (in_t, in_s)


def test_each_space_is_named_once_and_leads_the_right_way(heads: Heads) -> None:
    labels = [space.label for space in heads.spaces]
    assert len(set(labels)) == len(labels) == 8 + 12
    spaces = {space.label: space for space in heads.spaces}
    pair = Site(1, Role.V), Site(2, Role.V)
    read, written = spaces[read_label(*pair)], spaces[written_label(*pair)]
    assert (read.x, read.y) == ("target.2.q.input", "source.1.q.input")
    assert (written.x, written.y) == ("source.1.v.output", "target.2.v.output")
    assert (read.gradients, read.read) == (None, True)
    assert written.gradients == ("source.1.v.gradient", "target.2.v.gradient")
    assert (read.heads, written.heads) == (heads.reader(*pair), heads.writer(*pair))


@pytest.mark.parametrize("gradients", [True, False])
def test_taps_are_those_that_the_spaces_take(frame: PairFrame, gradients: bool) -> None:
    heads = Heads(frame, hidden=0, both=False, gradients=gradients, seed=0)
    source, target = heads.taps()
    assert (Tap.gradient(Site(0, Role.Q)) in source) == gradients
    given = {tap.label_on("source") for tap in source} | {tap.label_on("target") for tap in target}
    taken = {label for s in heads.spaces for label in (s.x, s.y, *(s.gradients or ()))}
    assert given == taken
    assert len(source) == len(set(source))


def test_losses_are_means_over_spaces(heads: Heads) -> None:
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, torch.Tensor] = {}
    for space in heads.spaces:
        for label, head in ((space.x, space.heads.head), (space.y, space.heads.back)):
            assert head is not None
            batch.setdefault(label, torch.randn(5, head.skip.in_features, generator=generator))
        for label, like in zip(space.gradients or (), (space.x, space.y), strict=False):
            batch[label] = torch.randn(batch[like].shape, generator=generator)
    losses = heads.losses(batch)
    single = [
        s.heads.losses(
            batch[s.x],
            batch[s.y],
            None if s.gradients is None else (batch[s.gradients[0]], batch[s.gradients[1]]),
        )
        for s in heads.spaces
    ]
    for name, part in losses._asdict().items():
        expected = sum(getattr(one, name).item() for one in single) / len(single)
        assert part.item() == pytest.approx(expected, rel=1e-5)
    assert losses.behaviour > 0


def test_frozen_ones_are_the_same_weights_without_gradients(heads: Heads) -> None:
    frozen = heads.frozen()
    for (name, weight), (_, other) in zip(
        heads.named_parameters(), frozen.named_parameters(), strict=True
    ):
        assert weight.data_ptr() == other.data_ptr(), name
        assert weight.requires_grad
        assert not other.requires_grad
    pair = Site(1, Role.V), Site(2, Role.V)
    assert frozen.reader(*pair) is not heads.reader(*pair)
    assert frozen.reader(*pair) is frozen.reader(Site(1, Role.Q), Site(2, Role.Q))


def test_the_seed_draws_the_mlps(frame: PairFrame) -> None:
    def drawn(seed: int) -> torch.Tensor:
        heads = Heads(frame, hidden=4, both=False, gradients=False, seed=seed)
        return torch.cat([weight.flatten() for weight in heads.parameters()])

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
