"""Cross-LoRA: its three readings, and what they depend on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from loraport.adapters import LoraAdapter, Role, Site, relative_error
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


@pytest.fixture(scope="module")
def llama(pico_pair: BasePair) -> StreamedWeights:
    return pico_pair.source


@pytest.fixture(scope="module")
def gemma(pico_pair: BasePair) -> StreamedWeights:
    return pico_pair.target


@pytest.fixture(scope="module")
def adapter(llama: StreamedWeights, adapter_of: Callable[..., LoraAdapter]) -> LoraAdapter:
    return adapter_of(llama)


def mapped(variant: str, pair: BasePair, adapter: LoraAdapter, rank: int = RANK) -> LoraAdapter:
    mapper = CrossLoraMapper(variant, rank)
    mapper.use(pair)
    return mapper.map(adapter)


def exact_svd(weights: StreamedWeights, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    """The leading singular vectors by another algorithm, the largest entry of each u positive."""
    u, _, vt = torch.linalg.svd(weights.weight(site).double(), full_matrices=False)
    u, v = u[:, :RANK], vt[:RANK].mT
    peaks = u[u.abs().argmax(dim=0), torch.arange(RANK)]
    return u * peaks.sign(), v * peaks.sign()


class TestDifferentShapes:
    def test_sign_fixed_is_the_formula(
        self, llama: StreamedWeights, gemma: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        result = mapped("sign_fixed", BasePair(llama, gemma), adapter)
        for site, source in ((Site(2, Role.Q), Site(1, Role.Q)), (Site(0, Role.DOWN),) * 2):
            (u_s, v_s), (u_t, v_t) = exact_svd(llama, source), exact_svd(gemma, site)
            delta = adapter[source].dense().double()
            expected = u_t @ (u_s.mT @ delta @ v_s) @ v_t.mT
            torch.testing.assert_close(
                result[site].dense().double(), expected, rtol=1e-3, atol=1e-3
            )

    @pytest.mark.parametrize(("variant", "changes"), [("sign_fixed", False), ("typed", True)])
    def test_signs_of_the_svd_matter_to_typed_only(
        self,
        variant: str,
        changes: bool,
        llama: StreamedWeights,
        gemma: StreamedWeights,
        adapter: LoraAdapter,
    ) -> None:
        plain = mapped(variant, BasePair(llama, gemma), adapter)
        for seed in range(3):
            pair = BasePair(llama, gemma, FlippedSigns(seed))
            error = relative_error(mapped(variant, pair, adapter), plain)
            assert (error > 0.5) if changes else (error < 1e-6)

    @pytest.mark.parametrize("variant", ["paper", "lora_x"])
    def test_what_takes_one_shape_is_refused_with_the_way_out(
        self, variant: str, llama: StreamedWeights, gemma: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        with pytest.raises(
            ConfigurationError,
            match=r"equal shapes only.*layers\.0\.self_attn\.q_proj of pico/llama is \(32, 32\) "
            r"and .* of pico/target is \(48, 48\); use .*variant=typed or sign_fixed",
        ):
            mapped(variant, BasePair(llama, gemma), adapter)


class TestSameModel:
    @pytest.mark.parametrize("variant", ["paper", "typed", "sign_fixed"])
    def test_it_is_the_projection_with_the_energy_told(
        self, variant: str, llama: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        mapper = CrossLoraMapper(variant, RANK)
        mapper.use(BasePair(llama, llama))
        result = mapper.map(adapter)
        facts = mapper.report()["sites"]
        for site, update in adapter.items():
            u, v = exact_svd(llama, site)
            expected = u @ u.mT @ update.dense().double() @ v @ v.mT
            torch.testing.assert_close(
                result[site].dense().double(), expected, rtol=1e-3, atol=1e-3
            )
            share = float(expected.norm()) / update.norm()
            assert facts[site.label]["kept_norm"] == pytest.approx(share, rel=1e-3)
            weight = llama.weight(site).double()
            energy = float((u.mT @ weight).square().sum() / weight.square().sum())
            assert facts[site.label]["source_energy_kept"] == pytest.approx(energy, rel=1e-4)
            assert facts[site.label]["output_subspace_similarity"] == pytest.approx(1, rel=1e-4)

    def test_with_all_singular_vectors_of_a_square_weight_nothing_is_lost(
        self, llama: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        q_and_o = LoraAdapter(
            {s: u for s, u in adapter.items() if s.role in (Role.Q, Role.O)}, llama.name
        )
        for variant in ("paper", "typed", "sign_fixed"):
            result = mapped(variant, BasePair(llama, llama), q_and_o, rank=320)
            assert relative_error(result, q_and_o) < 1e-5


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"variant": "signed"},
                r"mapper\.variant is 'signed'; it takes one of lora_x, paper, typed",
            ),
            ({"rank": 0}, r"mapper\.rank is 0; it takes a whole number of at least 1"),
            ({"power_iterations": -1}, r"mapper\.power_iterations is -1; .* at least 0"),
        ],
    )
    def test_wrong_values_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            CrossLoraMapper(**options)

    def test_factorisations_are_kept_for_the_second_adapter(
        self, llama: StreamedWeights, gemma: StreamedWeights, adapter: LoraAdapter, tmp_path
    ) -> None:
        pair = BasePair(llama, gemma, FactorCache(tmp_path))
        first = mapped("sign_fixed", pair, adapter)
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
        assert len(kept) == len(llama.sites.shapes) + len(gemma.sites.shapes)
        again = mapped("sign_fixed", pair, adapter)
        assert again.content_hash() == first.content_hash()
        assert {path: path.stat().st_mtime_ns for path in kept} == kept


# LoRA-X, which is Cross-LoRA as printed, for two models of the same shapes.

Opened = Callable[[BaseModel], StreamedWeights]


@pytest.fixture(scope="module")
def pair(pico: Callable[[str], BaseModel], opened: Opened) -> BasePair:
    """llama and qwen2 have the same shapes here, and other weights."""
    source, target = opened(pico("llama")), opened(pico("qwen2"))
    assert source.sites.shapes == target.sites.shapes
    # The pico models of one seed share their draws: these weights shall be unrelated.
    weights = {site: target.weight(site).flip(0) for site in target.sites.shapes}
    object.__setattr__(target, "weight", weights.__getitem__)
    return BasePair(source, target)


@pytest.fixture(scope="module")
def llama_adapter(pair: BasePair, adapter_of: Callable[..., LoraAdapter]) -> LoraAdapter:
    return adapter_of(pair.source)


def test_it_is_the_update_within_the_targets_subspaces(
    pair: BasePair, llama_adapter: LoraAdapter
) -> None:
    mapper = CrossLoraMapper("lora_x", rank=6)
    mapper.use(pair)
    result = mapper.map(llama_adapter)
    for site, update in llama_adapter.items():
        u, _, vt = torch.linalg.svd(pair.target.weight(site).double(), full_matrices=False)
        u, v = u[:, :6], vt[:6].mT
        expected = u @ u.mT @ update.dense().double() @ v @ v.mT
        torch.testing.assert_close(result[site].dense().double(), expected, rtol=1e-3, atol=1e-3)
        own, _, _ = torch.linalg.svd(pair.source.weight(site).double(), full_matrices=False)
        alike = float((own[:, :6].mT @ u).square().sum()) / 6
        told = mapper.report()["sites"][site.label]["output_subspace_similarity"]
        assert told == pytest.approx(alike, abs=1e-3)


def test_cross_lora_as_printed_is_the_same(pair: BasePair, llama_adapter: LoraAdapter) -> None:
    results = []
    for mapper in (CrossLoraMapper("lora_x", rank=6), CrossLoraMapper("paper", rank=6)):
        mapper.use(pair)
        results.append(mapper.map(llama_adapter))
    assert relative_error(*results) == 0
