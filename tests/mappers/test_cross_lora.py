"""Cross-LoRA: its readings, and what they depend on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.alignment import TruncatedSvd
from loraport.exceptions import ConfigurationError
from loraport.mappers import BasePair
from loraport.mappers.cross_lora import CrossLoraMapper
from loraport.models import BaseModel, FactorCache, StreamedWeights

RANK = 8


class FlippedSigns(FactorCache):
    """Gives every pair ``(u_i, v_i)`` a random sign: as good an SVD as the one it is given."""

    def __init__(self, seed: int) -> None:
        super().__init__(None)
        self.generator = torch.Generator().manual_seed(seed)

    def svd(self, *arguments, **options) -> TruncatedSvd:
        svd = super().svd(*arguments, **options)
        drawn = torch.randint(0, 2, svd.S.shape, generator=self.generator)
        signs = 2.0 * drawn - 1
        return svd._replace(U=svd.U * signs, V=svd.V * signs)


def mapped(variant: str, pair: BasePair, adapter: LoraAdapter, rank: int = RANK) -> LoraAdapter:
    mapper = CrossLoraMapper(variant, rank)
    mapper.use(pair)
    return mapper.map(adapter)


def exact_svd(weights: StreamedWeights, site: Site) -> tuple[Tensor, Tensor]:
    """The leading singular vectors by another algorithm, the largest entry of each u positive."""
    u, _, vt = torch.linalg.svd(weights.weight(site).double(), full_matrices=False)
    u, v = u[:, :RANK], vt[:RANK].mT
    peaks = u[u.abs().argmax(dim=0), torch.arange(RANK)]
    return u * peaks.sign(), v * peaks.sign()


def assert_close(update: LowRank, expected: Tensor) -> None:
    torch.testing.assert_close(update.dense().double(), expected, rtol=1e-3, atol=1e-3)


def test_sign_fixed_is_the_formula(pico_pair: BasePair, pico_adapter: LoraAdapter) -> None:
    result = mapped("sign_fixed", pico_pair, pico_adapter)
    for site, source in ((Site(2, Role.Q), Site(1, Role.Q)), (Site(0, Role.DOWN),) * 2):
        (u_s, v_s), (u_t, v_t) = (
            exact_svd(pico_pair.source, source),
            exact_svd(pico_pair.target, site),
        )
        delta = pico_adapter[source].dense().double()
        assert_close(result[site], u_t @ (u_s.mT @ delta @ v_s) @ v_t.mT)


@pytest.mark.parametrize(("variant", "changes"), [("sign_fixed", False), ("typed", True)])
def test_signs_of_the_svd_matter_to_typed_only(
    variant: str, changes: bool, pico_pair: BasePair, pico_adapter: LoraAdapter
) -> None:
    plain = mapped(variant, pico_pair, pico_adapter)
    for seed in range(2):
        pair = BasePair(pico_pair.source, pico_pair.target, FlippedSigns(seed))
        error = relative_error(mapped(variant, pair, pico_adapter), plain)
        assert (error > 0.5) if changes else (error < 1e-6)


@pytest.mark.parametrize("variant", ["paper", "typed", "sign_fixed"])
def test_between_equal_models_it_is_the_projection_with_the_energy_told(
    variant: str, pico_pair: BasePair, pico_adapter: LoraAdapter
) -> None:
    same, mapper = BasePair(pico_pair.source, pico_pair.source), CrossLoraMapper(variant, RANK)
    mapper.use(same)
    result = mapper.map(pico_adapter)
    facts = mapper.report()["sites"]
    for site, update in pico_adapter.items():
        u, v = exact_svd(pico_pair.source, site)
        expected = u @ u.mT @ update.dense().double() @ v @ v.mT
        assert_close(result[site], expected)
        share = float(expected.norm()) / update.norm()
        assert facts[site.label]["kept_norm"] == pytest.approx(share, rel=1e-3)
        weight = pico_pair.source.weight(site).double()
        energy = float((u.mT @ weight).square().sum() / weight.square().sum())
        assert facts[site.label]["source_energy_kept"] == pytest.approx(energy, rel=1e-4)
        assert facts[site.label]["output_subspace_similarity"] == pytest.approx(1, rel=1e-4)
    # With all singular vectors of a square weight nothing is lost.
    square = {s: u for s, u in pico_adapter.items() if s.role in (Role.Q, Role.O)}
    q_and_o = LoraAdapter(square, pico_adapter.base_model)
    assert relative_error(mapped(variant, same, q_and_o, rank=320), q_and_o) < 1e-5


@pytest.fixture(scope="module")
def alike(pico: Callable[[str], BaseModel], opened: Callable[..., StreamedWeights]) -> BasePair:
    """llama and qwen2 have the same shapes here, and other weights."""
    source, target = opened(pico("llama")), opened(pico("qwen2"))
    assert source.sites.shapes == target.sites.shapes
    # The pico models of one seed share their draws: these weights shall be unrelated.
    weights = {site: target.weight(site).flip(0) for site in target.sites.shapes}
    object.__setattr__(target, "weight", weights.__getitem__)
    return BasePair(source, target)


def test_as_printed_it_is_the_update_within_the_targets_subspaces_which_is_lora_x(
    alike: BasePair, pico_adapter: LoraAdapter
) -> None:
    mapper = CrossLoraMapper("lora_x", RANK)
    mapper.use(alike)
    result = mapper.map(pico_adapter)
    for site, update in pico_adapter.items():
        u, v = exact_svd(alike.target, site)
        assert_close(result[site], u @ u.mT @ update.dense().double() @ v @ v.mT)
        own, _ = exact_svd(alike.source, site)
        similarity = float((own.mT @ u).square().sum()) / RANK
        told = mapper.report()["sites"][site.label]["output_subspace_similarity"]
        assert told == pytest.approx(similarity, abs=1e-3)
    assert relative_error(mapped("paper", alike, pico_adapter), result) == 0


def test_what_takes_one_shape_is_refused_with_the_way_out(
    pico_pair: BasePair, pico_adapter: LoraAdapter
) -> None:
    message = (
        r"equal shapes only.*layers\.0\.self_attn\.q_proj of pico/llama is \(32, 32\) "
        r"and .* of pico/target is \(48, 48\); use .*variant=typed or sign_fixed"
    )
    for variant in ("paper", "lora_x"):
        with pytest.raises(ConfigurationError, match=message):
            mapped(variant, pico_pair, pico_adapter)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "signed"}, r"mapper\.variant is 'signed'; it takes one of lora_x, paper"),
        ({"rank": 0}, r"mapper\.rank is 0; it takes 1 or more"),
        ({"power_iterations": -1}, r"mapper\.power_iterations is -1; it takes 0 or more"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CrossLoraMapper(**options)


def test_factorisations_are_kept_for_the_second_adapter(
    pico_pair: BasePair, pico_adapter: LoraAdapter, tmp_path: Path
) -> None:
    pair = BasePair(pico_pair.source, pico_pair.target, FactorCache(tmp_path))
    first = mapped("sign_fixed", pair, pico_adapter)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(kept) == len(pair.source.sites.shapes) + len(pair.target.sites.shapes)
    again = mapped("sign_fixed", pair, pico_adapter)
    assert again.content_hash() == first.content_hash()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
