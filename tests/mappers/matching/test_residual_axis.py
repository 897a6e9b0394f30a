import pytest
import torch

from loraport.alignment.permutations import LinearAssignment
from loraport.mappers.matching.residual_axis import residual_axis
from loraport.mappers.weight_mapper import BasePair
from loraport.models.weights import StreamedWeights


@pytest.fixture
def pair(tmp_path, pico):
    """Two models with the same byte tokenizer, one saved twice."""
    base = pico("llama")
    for name in ("source", "target"):
        base.network.save_pretrained(tmp_path / name)
        base.tokenizer.save_pretrained(tmp_path / name)
    source, target = (StreamedWeights.open(tmp_path / n, n) for n in ("source", "target"))
    return BasePair(source, target)


def planted(pair: BasePair, monkeypatch: pytest.MonkeyPatch, width: int) -> torch.Tensor:
    """Make the target's embedding one of other width, with the source's dimensions in it."""
    generator = torch.Generator().manual_seed(0)
    known = pair.source.embedding()
    joint = torch.zeros(known.shape[1], width)
    places = torch.randperm(width, generator=generator)[: known.shape[1]]
    signs = torch.randint(0, 2, places.shape, generator=generator) * 2.0 - 1
    joint[torch.arange(len(places)), places] = signs[: len(places)]
    noise = 0.05 * torch.randn(len(known), width, generator=generator)
    # Means and scales of its own: only the correlation counts.
    embedding = 10 * (known @ joint + noise) + 3
    original = StreamedWeights.embedding
    monkeypatch.setattr(
        StreamedWeights,
        "embedding",
        lambda self: embedding if self is pair.target else original(self),
    )
    return joint


@pytest.mark.parametrize("width", [32, 40])
def test_planted_signed_permutation_is_recovered(pair, monkeypatch, width):
    joint = planted(pair, monkeypatch, width)
    axis = residual_axis(pair, 256, LinearAssignment())
    assert torch.equal(axis.plan.joint, joint)
    assert axis.facts["shared_tokens"] == 256
    assert axis.facts["similarity"] > 0.9


def test_fewer_tokens_are_used_when_asked(pair):
    assert residual_axis(pair, 40, LinearAssignment()).facts["shared_tokens"] == 40


def test_constant_dimension_correlates_with_nothing(pair, monkeypatch):
    flat = pair.target.embedding().clone()
    flat[:, 5] = 1.5
    original = StreamedWeights.embedding
    monkeypatch.setattr(
        StreamedWeights, "embedding", lambda self: flat if self is pair.target else original(self)
    )
    joint = residual_axis(pair, 256, LinearAssignment()).plan.joint
    assert torch.isfinite(joint).all()
    assert torch.equal(joint, torch.eye(32))
