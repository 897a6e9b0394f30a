"""The cartridge: its formula, its file, and what it does on a model."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site
from loraport.exceptions import AdapterError, OutputError
from loraport.mappers.cartridge import Cartridge, CartridgeSite, exported, load_cartridge
from loraport.mappers.heads import ProjectionHead
from loraport.models import BaseModel, attached

IDS = torch.arange(24).reshape(2, 12) % 200 + 2
ROLES = (Role.Q, Role.V)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(width: int, out: int, hidden: int, seed: int) -> ProjectionHead:
    """A head whose weights are all other than zero."""
    made = ProjectionHead(width, out, hidden, torch.Generator().manual_seed(seed))
    made.start(drawn(out, width, seed=seed) / width**0.5, drawn(out, seed=seed + 1))
    if made.outer is not None:
        made.outer.weight.data = drawn(out, hidden, seed=seed + 2) / hidden**0.5
    return made


def cartridge_of(source: BaseModel, target: BaseModel, hidden: int, feeds: int = 1) -> Cartridge:
    """Of q and v in every target layer, which share an input projection."""
    sites = []
    kept: dict[str, Tensor] = {}
    for layer in range(target.sites.layers):
        for origin in range(feeds):
            shapes = {
                role: (
                    source.sites.shapes[Site(origin, role)],
                    target.sites.shapes[Site(layer, role)],
                )
                for role in ROLES
            }
            (_, in_s), (_, in_t) = shapes[Role.Q]
            into = head(in_t, in_s, hidden, 10 * layer + origin)
            for role, ((out_s, _), (out_t, _)) in shapes.items():
                seed = 100 * layer + 10 * origin + ROLES.index(role)
                module_name = Site(origin, role).module_name
                module: Any = source.network.get_submodule(module_name)
                sites.append(
                    CartridgeSite(
                        Site(origin, role),
                        Site(layer, role),
                        1.0 if feeds == 1 else 0.25 + 0.5 * origin,
                        into,
                        head(out_s, out_t, hidden, seed + 5),
                        # One tensor for all that it feeds, as a mapper has it.
                        kept.setdefault(module_name, module.weight.detach().clone()),
                        drawn(out_s, seed=seed),
                        LowRank(drawn(2, in_s, seed=seed), drawn(out_s, 2, seed=seed + 1) / 4, 0.5),
                    )
                )
    return Cartridge(target.name, sites).eval()


@pytest.fixture(scope="module")
def cartridge(pico_source: BaseModel, pico_target: BaseModel) -> Cartridge:
    return cartridge_of(pico_source, pico_target, hidden=6, feeds=2)


def logits(base: BaseModel) -> Tensor:
    with torch.inference_mode():
        return base.network(input_ids=IDS).logits


def test_it_is_the_difference_of_what_the_output_projection_makes(cartridge: Cartridge) -> None:
    target = Site(1, Role.V)
    x = drawn(7, 48, seed=3)
    acting = cartridge.acts_at()[target]
    assert [(site.source.layer, site.weight) for site in acting] == [(0, 0.25), (1, 0.75)]
    expected = torch.zeros(7, acting[0].output_projection.skip.out_features)
    for site in acting:
        # A site keeps the adapter's scale in its B.
        read = site.input_projection(x)
        before = read @ site.module_weight.mT + site.module_bias
        after = before + (site.B @ (site.A @ read.mT)).mT
        expected += site.weight * (site.output_projection(after) - site.output_projection(before))
    torch.testing.assert_close(cartridge.change(target, x), expected, rtol=1e-5, atol=1e-5)
    assert expected.abs().max() > 0.1


def test_the_scale_of_the_update_counts_once() -> None:
    update = LowRank(drawn(2, 5), drawn(3, 2, seed=1), 0.5)
    into, out = head(4, 5, 0, 1), head(3, 6, 0, 2)
    pair = Site(0, Role.Q), Site(0, Role.Q)
    one = CartridgeSite(*pair, 2.0, into, out, drawn(3, 5), drawn(3), update)
    x = drawn(8, 4, seed=9)
    expected = 2 * into(x) @ update.dense().mT @ out.skip.weight.mT
    torch.testing.assert_close(one(x), expected, rtol=1e-4, atol=1e-5)


def test_with_linear_heads_it_is_the_lora_between_them_and_leaves_no_trace(
    pico_source: BaseModel, pico_target: BaseModel
) -> None:
    linear = cartridge_of(pico_source, pico_target, hidden=0)
    updates = {}
    for target, (site,) in linear.acts_at().items():
        site.input_projection.skip.bias.zero_()
        m, n = site.input_projection.skip.weight, site.output_projection.skip.weight
        updates[target] = LowRank(site.A @ m, n @ site.B)
    plain = logits(pico_target)
    with attached(pico_target.network, LoraAdapter(updates, pico_target.name)):
        expected = logits(pico_target)
    with linear.attached(pico_target.network):
        found = logits(pico_target)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert (found - plain).abs().max() > 0.1
    with pytest.raises(RuntimeError, match="planted"), linear.attached(pico_target.network):
        raise RuntimeError("planted")
    assert torch.equal(logits(pico_target), plain)


def test_generation_with_the_cache_gives_the_tokens_of_whole_passes(
    cartridge: Cartridge, pico_target: BaseModel
) -> None:
    network: Any = pico_target.network
    start = IDS[:1, :6]
    with cartridge.attached(network), torch.inference_mode():
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        written = network.generate(start, attention_mask=torch.ones_like(start), **options)
        whole = start
        for _ in range(6):
            scores = network(input_ids=whole, use_cache=False).logits[:, -1]
            scores[:, network.generation_config.eos_token_id or 1] = -torch.inf
            whole = torch.cat([whole, scores.argmax(dim=-1, keepdim=True)], dim=1)
    plain = network.generate(start, attention_mask=torch.ones_like(start), **options)
    assert torch.equal(written, whole)
    assert not torch.equal(written, plain)


def weights(cartridge: Cartridge) -> dict[str, Tensor]:
    named = dict[str, Tensor](cartridge.named_parameters())
    return named | dict(cartridge.named_buffers(remove_duplicate=False))


def test_a_saved_one_comes_back_to_the_bit_with_shared_projections(
    cartridge: Cartridge, pico_target: BaseModel, tmp_path: Path
) -> None:
    cartridge.save(tmp_path / "made")
    read = load_cartridge(tmp_path / "made")
    assert read.base_model == "pico/target"
    assert read.content_hash() == cartridge.content_hash()
    with cartridge.attached(pico_target.network):
        expected = logits(pico_target)
    with read.attached(pico_target.network):
        assert torch.equal(logits(pico_target), expected)
    for made in (cartridge, read):
        q, v = (made.acts_at()[Site(2, role)] for role in ROLES)
        assert all(a.input_projection is b.input_projection for a, b in zip(q, v, strict=True))
        assert q[0].input_projection is not q[1].input_projection
    (file,) = (tmp_path / "made").iterdir()
    assert file.stat().st_size < 4 * sum(w.numel() for w in weights(cartridge).values()) + 20_000
    with pytest.raises(OutputError, match="exists already"):
        read.save(tmp_path / "made")
    before = file.read_bytes()
    read.save(tmp_path / "made", overwrite=True)
    assert file.read_bytes() == before


def test_the_hash_follows_every_weight_and_the_wiring(cartridge: Cartridge) -> None:
    known = {cartridge.content_hash()}
    names = list(weights(cartridge))[::17]
    for name in names:
        other = deepcopy(cartridge)
        weights(other)[name].view(-1)[0] += 1
        known.add(other.content_hash())
    assert len(known) == 1 + len(names)
    other = deepcopy(cartridge)
    assert other.content_hash() in known
    first: Any = other.sites[0]
    first.weight = 0.5
    assert other.content_hash() not in known


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"0.q", b"0.z"),
        (b'\\"format\\": 2', b'\\"format\\": 9'),
        (b"sites.1.module_bias", b"sites.1.module_bios"),
        (None, b"\0" * 64),
        (None, None),
    ],
    ids=["wiring", "format", "name", "head", "missing"],
)
def test_a_damaged_file_is_refused(
    cartridge: Cartridge, tmp_path: Path, old: bytes | None, new: bytes | None
) -> None:
    cartridge.save(tmp_path / "made")
    (file,) = (tmp_path / "made").iterdir()
    content = file.read_bytes()
    if new is None:
        file.unlink()
    elif old is None:
        file.write_bytes(new + content[len(new) :])
    else:
        assert old in content
        file.write_bytes(content.replace(old, new))
    with pytest.raises(
        AdapterError, match=r"cannot be read .* takes a cartridge.* with cartridge=DIR"
    ):
        load_cartridge(tmp_path / "made")


def test_a_wrong_model_is_refused_and_left_as_it_was(
    cartridge: Cartridge, pico_source: BaseModel
) -> None:
    plain = pico_source.network(input_ids=IDS % 20).logits
    message = r"made for pico/target, acts on model\.layers\.0.* attach it to the model it was"
    with pytest.raises(AdapterError, match=message), cartridge.attached(pico_source.network):
        pass
    assert torch.equal(pico_source.network(input_ids=IDS % 20).logits, plain)


# The LoRA nearest to a cartridge, against computations of its own.

SITE = Site(0, Role.Q)
LABEL = "target.0.q.input"
WIDTH, OUT, RANK = 8, 7, 2


def one_site(hidden: int) -> Cartridge:
    update = LowRank(drawn(RANK, 6, seed=1), drawn(5, RANK, seed=2), 0.5)
    heads = head(WIDTH, 6, hidden, 3), head(5, OUT, hidden, 5)
    for projection in heads:
        projection.skip.bias.data.zero_()  # a LoRA holds no constant part
        if projection.outer is not None:
            projection.outer.weight.data *= hidden**0.5
    module = drawn(5, 6, seed=7), drawn(5, seed=8)
    return Cartridge("pico/target", [CartridgeSite(SITE, SITE, 1.0, *heads, *module, update)])


TRAIN, HELD_OUT = {LABEL: drawn(3000, WIDTH, seed=11)}, {LABEL: drawn(700, WIDTH, seed=12)}


def test_a_linear_one_is_exported_exactly() -> None:
    linear = one_site(0)
    made, facts = exported(linear, TRAIN, HELD_OUT, RANK)
    (site,) = linear.acts_at()[SITE]
    expected = (
        site.output_projection.skip.weight @ site.B @ site.A @ site.input_projection.skip.weight
    )
    torch.testing.assert_close(made[SITE].dense(), expected, rtol=1e-4, atol=1e-4)
    assert facts["0.q"]["r2"] == pytest.approx(1, abs=1e-6)
    assert facts["0.q"]["lost"] == pytest.approx(0, abs=1e-6)
    assert (made.base_model, made[SITE].rank) == ("pico/target", RANK)


def test_what_a_nonlinear_one_loses_is_measured_on_held_out_rows() -> None:
    bent = one_site(6)
    made, facts = exported(bent, TRAIN, HELD_OUT, 4)
    with torch.no_grad():
        change = bent.change(SITE, HELD_OUT[LABEL])
    error = change - HELD_OUT[LABEL] @ made[SITE].dense().mT
    r2 = 1 - float(error.double().square().sum() / change.double().square().sum())
    assert facts["0.q"]["r2"] == pytest.approx(r2, abs=1e-5)
    assert 0.05 < r2 < 0.98
    assert facts["0.q"]["norm"] == pytest.approx(float(made[SITE].dense().norm()), rel=1e-5)
    assert exported(bent, TRAIN, HELD_OUT, 1)[1]["0.q"]["lost"] > facts["0.q"]["lost"]
