"""Shared tokens, planted permutations and rotary pairs: each step of a match by itself."""

from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as kinds
from tokenizers.decoders import ByteLevel
from transformers import AutoConfig, PreTrainedTokenizerFast

from loraport.adapters import Role, Site
from loraport.alignment.permutations import AxisPlan, ExactPlan, LinearAssignment, UnitSimilarity
from loraport.exceptions import ModelError
from loraport.mappers.base import BasePair
from loraport.mappers.unit_matching import (
    MINIMUM,
    CoordinateDescent,
    GroupPair,
    head_axes,
    log_frequencies,
    residual_axis,
    rope_plan,
    shared_tokens,
    site_similarity,
)
from loraport.models.architectures import HeadShape
from loraport.models.streaming import StreamedWeights

WORDS = [f"word{place}" for place in range(20)]


def byte_level(tokens: list[str]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", *alphabet, *tokens])}
    tokenizer = Tokenizer(kinds.BPE(vocabulary, []))
    tokenizer.decoder = ByteLevel()
    return tokenizer


def sentencepiece(tokens: list[str]) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", *tokens])}
    tokenizer = Tokenizer(kinds.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def words(tokens: list[str]) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", *tokens])}
    return Tokenizer(kinds.WordLevel(vocabulary, unk_token="<pad>"))


@pytest.fixture
def model(tmp_path: Path, pico_source):
    def make(name: str, tokenizer: Tokenizer) -> StreamedWeights:
        folder = tmp_path / name
        tokenizer.add_special_tokens(["<s>", "<pad>"])
        network = pico_source.network
        network.config.save_pretrained(folder)
        network.save_pretrained(folder)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
        fast.save_pretrained(folder)
        opened = StreamedWeights.open(folder, name)
        opened.config.vocab_size = len(fast)
        return opened

    return make


def strings(source, target, limit=1000) -> list[tuple[str, str]]:
    ours, theirs = shared_tokens(source, target, limit)
    return list(
        zip(
            source.tokenizer.convert_ids_to_tokens(ours.tolist()),
            target.tokenizer.convert_ids_to_tokens(theirs.tolist()),
            strict=True,
        )
    )


def test_conventions_of_the_leading_space_are_brought_together(model):
    one = model("bytes", byte_level([*WORDS, *(f"Ġ{w}" for w in WORDS), "Ã©lan", "only"]))
    other = model("pieces", sentencepiece(["other", *(f"▁{w}" for w in WORDS), "élan"]))
    third = model("words", words([*(f" {w}" for w in WORDS[::-1]), "élan", "third"]))
    assert strings(one, other) == [*((f"Ġ{w}", f"▁{w}") for w in WORDS), ("Ã©lan", "élan")]
    assert strings(third, other) == [*((f" {w}", f"▁{w}") for w in WORDS[::-1]), ("élan", "élan")]
    assert strings(one, third)[-1] == ("Ã©lan", "élan")


def test_special_tokens_and_single_bytes_are_left_out(model):
    one = model("bytes", byte_level(["<0x41>", *WORDS]))
    other = model("pieces", sentencepiece(["<0x41>", *WORDS, "A"]))
    assert strings(one, other) == [("A", "A"), *((w, w) for w in WORDS)]


def test_same_tokenizer_shares_every_string_that_has_an_embedding(model):
    one, other = (model(name, byte_level(WORDS)) for name in ("one", "other"))
    ours, theirs = shared_tokens(one, other, 1000)
    assert torch.equal(ours, theirs)
    assert ours.tolist() == list(range(1, 1 + 256 + len(WORDS)))
    fewer = shared_tokens(one, other, 20)[0].tolist()
    assert len(fewer) == 20
    assert {after - before for before, after in pairwise(fewer)} <= {13, 14}
    other.config.vocab_size = 100
    assert shared_tokens(one, other, 1000)[1].tolist() == list(range(1, 100))


def test_too_few_shared_strings_are_refused_with_their_number(model):
    one = model("bytes", byte_level(["Ġaa", "Ġbb"]))
    other = model("pieces", sentencepiece(["▁aa", "▁bb", "cc"]))
    with pytest.raises(ModelError, match=rf"of bytes .* of pieces .* share 2 .*takes {MINIMUM}"):
        shared_tokens(one, other, 1000)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, models):
    """Models whose norms' gains differ from dimension to dimension."""
    opened = []
    for base in (models.source, models.target):
        generator = torch.Generator().manual_seed(1)
        state = dict(base.network.state_dict())
        for key, tensor in state.items():
            if "norm" in key:
                state[key] = tensor + torch.rand(tensor.shape, generator=generator)
        folder = tmp_path_factory.mktemp("gains")
        base.network.save_pretrained(folder, state_dict=state)
        opened.append(StreamedWeights.open(folder, base.name))
    return BasePair(opened[0], opened[1])


@pytest.mark.parametrize("role", list(Role))
def test_units_are_compared_in_the_targets_residual_stream(pair, role):
    joint = torch.zeros(32, 48)
    places = torch.randperm(48, generator=torch.Generator().manual_seed(2))[:32]
    joint[torch.arange(32), places] = -1
    site = Site(1, role)
    found = site_similarity(pair, site, Site(2, role), AxisPlan(joint))

    def units(model: StreamedWeights, layer: int) -> np.ndarray:
        weight = model.weight(Site(layer, role)).numpy()
        if role in (Role.O, Role.DOWN):
            return weight.T
        gemma = "gemma" in model.config.model_type
        norm = {
            "self_attn": "input_layernorm",
            "mlp": "pre_feedforward_layernorm" if gemma else "post_attention_layernorm",
        }[role.block]
        return weight * (gemma + model.tensor(f"model.layers.{layer}.{norm}.weight").numpy())

    one, other = units(pair.source, 1) @ joint.numpy(), units(pair.target, 2)
    expected = one @ other.T / np.linalg.norm(one) / np.linalg.norm(other)
    np.testing.assert_allclose(found.inner, expected, atol=1e-6)


@pytest.fixture
def twins(pico, opened):
    """A model, saved twice."""
    base = pico("llama")
    return BasePair(opened(base), opened(base))


def with_embedding(monkeypatch: pytest.MonkeyPatch, model: StreamedWeights, planted: torch.Tensor):
    original = StreamedWeights.embedding
    monkeypatch.setattr(
        StreamedWeights, "embedding", lambda self: planted if self is model else original(self)
    )


@pytest.mark.parametrize("width", [32, 40])
def test_planted_signed_permutation_is_recovered(twins, monkeypatch, width):
    generator = torch.Generator().manual_seed(0)
    known = twins.source.embedding()
    joint = torch.zeros(known.shape[1], width)
    places = torch.randperm(width, generator=generator)[: known.shape[1]]
    signs = torch.randint(0, 2, places.shape, generator=generator) * 2.0 - 1
    joint[torch.arange(len(places)), places] = signs[: len(places)]
    noise = 0.05 * torch.randn(len(known), width, generator=generator)
    # Means and scales of its own: only the correlation counts.
    with_embedding(monkeypatch, twins.target, 10 * (known @ joint + noise) + 3)
    axis = residual_axis(twins, 256, LinearAssignment())
    assert torch.equal(axis.plan.joint, joint)
    assert axis.facts["shared_tokens"] == 256
    assert axis.facts["similarity"] > 0.9


def test_constant_dimension_correlates_with_nothing(twins, monkeypatch):
    flat = twins.target.embedding().clone()
    flat[:, 5] = 1.5
    with_embedding(monkeypatch, twins.target, flat)
    axis = residual_axis(twins, 40, LinearAssignment())
    assert torch.isfinite(axis.plan.joint).all()
    assert torch.equal(axis.plan.joint, torch.eye(32))
    assert axis.facts["shared_tokens"] == 40


DIMS, WIDTH = 5, 24


def weights(heads: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows of q, k and v and columns of o of one group."""
    generator = torch.Generator().manual_seed(seed)
    rows = {"q": heads * DIMS, "k": DIMS, "v": DIMS, "o": heads * DIMS}
    return {name: torch.randn(n, WIDTH, generator=generator) for name, n in rows.items()}


def moved(group: dict[str, torch.Tensor], heads: torch.Tensor, dims: torch.Tensor):
    rows = (heads[:, None] * DIMS + torch.arange(DIMS)).flatten()
    columns = (heads[:, None] * DIMS + dims).flatten()
    return {"q": group["q"][rows], "k": group["k"], "v": group["v"][dims], "o": group["o"][columns]}


def pair_of(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> GroupPair:
    parts = {name: UnitSimilarity.of(one[name], other[name]) for name in one}
    return GroupPair(**parts, rope=AxisPlan(torch.eye(DIMS)))


@pytest.fixture(params=[LinearAssignment(), ExactPlan()], ids=["hard", "soft"])
def align(request):
    return request.param


def fit(pair: GroupPair, align, seed: int = 0, sweeps: int = 100):
    return CoordinateDescent(align, sweeps, torch.Generator().manual_seed(seed)).fit(pair)


@pytest.mark.parametrize("seed", range(2))
def test_heads_and_dimensions_moved_together_are_recovered(align, seed):
    generator = torch.Generator().manual_seed(seed)
    heads, dims = torch.randperm(4, generator=generator), torch.randperm(DIMS, generator=generator)
    group = weights(4, seed)
    found = fit(pair_of(group, moved(group, heads, dims)), align, seed)
    assert torch.equal(found.heads.joint.argmax(dim=0), heads)
    assert torch.equal(found.dims.joint.argmax(dim=0), dims)
    assert found.value == pytest.approx(4, rel=1e-5)  # 1 for each of q, k, v and o.


def test_value_never_falls_from_sweep_to_sweep_until_nothing_is_won():
    pair = pair_of(weights(4, 1), weights(6, 2))
    values = [fit(pair, LinearAssignment(), 0, sweeps).value for sweeps in range(1, 6)]
    assert values == sorted(values)
    found = fit(pair, LinearAssignment())
    assert found.value == values[-1]
    for better in (
        (LinearAssignment()(pair.of_heads(found.dims)), found.dims),
        (found.heads, LinearAssignment()(pair.of_dims(found.heads))),
    ):
        assert pair.value(*better) == pytest.approx(found.value, rel=1e-6)


def test_value_is_the_inner_product_of_the_matched_weights():
    one, other = weights(2, 3), weights(2, 4)
    heads, dims = torch.tensor([1, 0]), torch.tensor([2, 0, 1, 4, 3])
    pair = pair_of(one, other)
    hard = [torch.eye(len(order))[order].mT for order in (heads, dims)]
    brought = moved(one, heads, dims)
    expected = sum(
        float((brought[n] * other[n]).sum() / one[n].norm() / other[n].norm()) for n in one
    )
    assert pair.value(*(AxisPlan(joint) for joint in hard)) == pytest.approx(expected, rel=1e-4)


def test_similarity_of_heads_and_of_dimensions_with_itself_has_cosine_one():
    group = weights(3, 5)
    pair = pair_of(group, group)
    same = fit(pair, LinearAssignment())
    for similarity in (pair.of_heads(same.dims), pair.of_dims(same.heads)):
        ones = torch.ones(len(similarity.inner))
        torch.testing.assert_close(similarity.cosine.diagonal(), ones, atol=1e-5, rtol=0)
    assert pair.squared() == pytest.approx((4, 4))


WIDTH_HEAD_AXES = 40


def weights_head_axes(shape: HeadShape, seed: int) -> dict[Role, torch.Tensor]:
    """Rows of q, k and v, and columns of o."""
    generator = torch.Generator().manual_seed(seed)
    keys = shape.groups * shape.dims
    rows = {Role.Q: keys * shape.heads, Role.K: keys, Role.V: keys, Role.O: keys * shape.heads}
    return {role: torch.randn(n, WIDTH_HEAD_AXES, generator=generator) for role, n in rows.items()}


def axes(one, source: HeadShape, other, target: HeadShape, align, rope: AxisPlan):
    similarity = {role: UnitSimilarity.of(one[role], other[role]) for role in one}
    descent = CoordinateDescent(align, 100, torch.Generator().manual_seed(0))
    return head_axes(similarity, source, target, rope, descent)


@pytest.mark.parametrize("kept", [[2, 0, 1], [2, 0]])
def test_groups_are_found_among_more_groups(kept):
    source, target = HeadShape(3, 2, 4), HeadShape(len(kept), 2, 4)
    one = weights_head_axes(source, 0)
    rows = {role: torch.cat([torch.arange(99)[source.rows(role, g)] for g in kept]) for role in one}
    other = {role: one[role][rows[role]] for role in one}
    found = axes(one, source, other, target, LinearAssignment(), AxisPlan(torch.eye(4)))
    for role, axis in found.items():
        assert torch.equal(axis.plan.joint.argmax(dim=0), rows[role])
        assert int(axis.plan.joint.sum()) == len(rows[role])
        assert axis.facts["matched"] == pytest.approx(len(kept) / 3)
        assert axis.facts["similarity"] == pytest.approx(1)


def test_query_heads_follow_their_group():
    """A query head is matched only where its keys and values are matched as well."""
    source, target = HeadShape(3, 2, 4), HeadShape(2, 4, 6)
    rope = AxisPlan(torch.eye(4, 6))
    one, other = weights_head_axes(source, 1), weights_head_axes(target, 2)
    found = axes(one, source, other, target, LinearAssignment(), rope)
    query = found[Role.Q].plan.joint.view(3, 2, 4, 2, 4, 6)
    attended = found[Role.O].plan.joint.view(3, 2, 4, 2, 4, 6)
    groups = found[Role.K].plan.joint.view(3, 4, 2, 6).sum(dim=(1, 3)) > 0
    assert int(groups.sum()) == 2
    for whole in (query, attended, found[Role.V].plan.joint.view(3, 1, 4, 2, 1, 6)):
        assert torch.equal(whole.sum(dim=(1, 2, 4, 5)) > 0, groups)
    # The same heads for what is asked and what is read, at other dimensions.
    assert torch.equal(query.sum(dim=(2, 5)), attended.sum(dim=(2, 5)))
    assert torch.equal(query.sum(dim=(0, 1, 3, 4)) > 0, rope.joint > 0)


def test_soft_plan_gives_every_unit_of_a_matched_dimension_the_same_mass():
    source, target = HeadShape(3, 2, 4), HeadShape(2, 4, 6)
    rope = AxisPlan(torch.eye(4, 6))
    one, other = weights_head_axes(source, 1), weights_head_axes(target, 2)
    found = axes(one, source, other, target, ExactPlan(), rope)
    for role in (Role.V, Role.O):
        joint = found[role].plan.joint
        for dim in (0, 1):
            masses = joint.sum(dim=dim)
            torch.testing.assert_close(masses, masses.mean().expand_as(masses))
    masses = found[Role.Q].plan.joint.sum(dim=0).view(2, 4, 6)
    torch.testing.assert_close(masses[..., :4], masses[0, 0, 0].expand(2, 4, 4))
    assert (masses[..., 4:] == 0).all()


def frequencies(theta: float, dims: int) -> torch.Tensor:
    return theta ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)


@pytest.mark.parametrize("thetas", [(1e4, 1e4), (5e5, 1e4)])
@pytest.mark.parametrize("dims", [2, 64])
def test_heads_of_one_width_are_matched_dimension_by_dimension(thetas, dims):
    plan = rope_plan(*(frequencies(theta, dims).log() for theta in thetas))
    assert torch.equal(plan.joint, torch.eye(dims))


@pytest.mark.parametrize("dims", [(6, 12), (12, 6), (8, 10)])
def test_pairs_of_nearest_frequency_are_matched_and_stay_together(dims):
    source, target = frequencies(1e4, dims[0]).log(), frequencies(1e6, dims[1]).log()
    joint = rope_plan(source, target).joint
    first, second = joint[: dims[0] // 2, : dims[1] // 2], joint[dims[0] // 2 :, dims[1] // 2 :]
    assert torch.equal(first, second)
    assert int(joint.sum()) == 2 * int(first.sum()) == min(dims)
    gaps = (source[:, None] - target).square()
    if dims[0] > dims[1]:
        gaps, first = gaps.mT, first.mT
    best = min(
        sum(float(gaps[i, j]) for i, j in enumerate(chosen))
        for chosen in permutations(range(gaps.shape[1]), gaps.shape[0])
    )
    assert float((first * gaps).sum()) == pytest.approx(best)


def test_frequencies_are_those_of_the_model(pico):
    for architecture in ("llama", "qwen2", "gemma2"):
        network = pico(architecture).network
        expected = network.model.rotary_emb.inv_freq
        found = log_frequencies(network.config, 0, 2 * len(expected)).exp()
        torch.testing.assert_close(found.float(), expected)


def test_theta_of_local_and_of_global_attention_are_told_apart():
    config = AutoConfig.for_model(
        "gemma3_text",
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        },
    )
    for layer, theta in enumerate((1e4, 1e6)):
        expected = frequencies(theta, 16)
        torch.testing.assert_close(log_frequencies(config, layer, 16).exp(), expected)
