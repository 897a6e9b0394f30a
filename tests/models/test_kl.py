import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from loraport.adapters import LoraAdapter
from loraport.exceptions import AdapterError, ConfigurationError, DataError, ModelError
from loraport.models import BaseModel, attached
from loraport.models.kl import (
    Divergences,
    KlToBase,
    KlToBaseGauge,
    divergence,
    js_divergence,
)

TEXTS = ["the film was good", "a plot", "never a very dull scene is the actor", "actor"]

Adapters = Callable[..., LoraAdapter]


@pytest.fixture
def adapter(pico_target: BaseModel, random_adapter: Adapters) -> LoraAdapter:
    return random_adapter(pico_target)


def direct(base: BaseModel, adapter: LoraAdapter, skip: int = 4) -> tuple[np.ndarray, Divergences]:
    """KL at all positions behind ``skip``, and all measures, in float64 and a text at a time."""
    kl, js, same = [], [], []
    for text in TEXTS:
        ids = torch.tensor([base.tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            own = base.network(input_ids=ids).logits[0].double()
            with attached(base.network, adapter):
                other = base.network(input_ids=ids).logits[0].double()
        first = min(skip, len(own) - 1)
        p, q = own[first:].softmax(dim=-1), other[first:].softmax(dim=-1)
        m = (p + q) / 2
        kl.append((p * (p / q).log()).sum(dim=-1))
        js.append(((p * (p / m).log()).sum(dim=-1) + (q * (q / m).log()).sum(dim=-1)) / 2)
        same.append((p.argmax(dim=-1) == q.argmax(dim=-1)).double())
    whole = torch.cat(kl).numpy()
    return whole, Divergences(
        len(whole),
        float(whole.mean()),
        float(np.percentile(whole, 95)),
        float(torch.cat(js).mean()),
        float(torch.cat(same).mean()),
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text"])
def test_all_measures_are_those_of_a_direct_computation(
    architecture: str, pico: Callable[[str], BaseModel], random_adapter: Adapters
) -> None:
    base = pico(architecture)
    adapter = random_adapter(base)
    gauge = KlToBaseGauge(base, TEXTS, positions=1000)
    wanted, measures = direct(base, adapter)
    found = gauge.divergences(adapter).numpy()
    np.testing.assert_allclose(np.sort(found), np.sort(wanted), rtol=1e-3, atol=1e-6)
    assert gauge.positions == len(wanted) > 40
    whole = gauge.measures(adapter)
    assert (whole.positions, whole.top1) == (len(wanted), measures.top1)
    assert 0 < whole.top1 < 1
    for name in ("kl", "kl_p95", "js"):
        assert getattr(whole, name) == pytest.approx(getattr(measures, name), rel=1e-3)
    assert gauge.of(adapter) == KlToBase(whole.kl, whole.kl_p95, whole.positions)
    # KL is quadratic in a small scale, and as exact there.
    small, double = (gauge.of(adapter, scale).mean for scale in (0.002, 0.004))
    assert double / small == pytest.approx(4, rel=0.02)
    tiny = direct(base, adapter.map(lambda update: update.scaled(0.01)))[0].mean()
    assert 1e-7 < tiny < 1e-3
    assert gauge.of(adapter, 0.01).mean == pytest.approx(tiny, rel=0.02)


def test_divergence_of_any_size_is_that_of_its_definition() -> None:
    own = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [1.0, 0.0, 0.0]]).clamp(min=1e-38).log()
    other = torch.tensor([[0.1, 0.2, 0.7], [0.7, 0.2, 0.1], [0.5, 0.5, 0.0]]).clamp(min=1e-38).log()
    wanted = torch.tensor([0.7 * math.log(7) - 0.1 * math.log(7), 0.0, math.log(2)])
    torch.testing.assert_close(divergence(own, other), wanted)


def test_a_tiny_divergence_over_a_large_vocabulary_is_not_lost_in_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(4, 50_000, generator=generator)
    moved = logits + 1e-4 * torch.randn(4, 50_000, generator=generator)
    own, other = (values.double().log_softmax(dim=-1) for values in (logits, moved))
    wanted = (own.exp() * (own - other)).sum(dim=-1)
    found = divergence(logits.log_softmax(dim=-1), moved.log_softmax(dim=-1))
    assert wanted.max() < 1e-7
    torch.testing.assert_close(found.double(), wanted, rtol=0.01, atol=0)


def logits(rows: int, words: int, seed: int) -> torch.Tensor:
    return 4 * torch.randn(rows, words, generator=torch.Generator().manual_seed(seed))


def test_js_is_symmetric_to_the_last_bit_and_agrees_with_scipy() -> None:
    one, other = (logits(6, 500, seed).log_softmax(dim=-1) for seed in (0, 1))
    found = js_divergence(one, other)
    assert torch.equal(found, js_divergence(other, one))
    reference = jensenshannon(one.double().exp().numpy(), other.double().exp().numpy(), axis=1) ** 2
    np.testing.assert_allclose(found.numpy(), reference, rtol=1e-4)


def test_js_of_what_has_nothing_in_common_is_ln_2() -> None:
    one = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).clamp(min=1e-38).log()
    other = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).clamp(min=1e-38).log()
    found = js_divergence(one, other)
    torch.testing.assert_close(found, torch.tensor([math.log(2), 0.0]))


def test_tiny_js_over_a_large_vocabulary_is_not_lost_in_rounding() -> None:
    own = logits(4, 50_000, 2)
    moved = own + 1e-4 * logits(4, 50_000, 3) / 4
    p, q = (values.double().softmax(dim=-1) for values in (own, moved))
    m = (p + q) / 2
    wanted = ((p * (p / m).log()).sum(dim=-1) + (q * (q / m).log()).sum(dim=-1)) / 2
    found = js_divergence(own.log_softmax(dim=-1), moved.log_softmax(dim=-1))
    torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=0)


def test_mean_and_percentile_are_those_of_the_positions() -> None:
    found = KlToBase.over(torch.arange(101, dtype=torch.float32))
    assert found == KlToBase(50.0, 95.0, 101)


def test_positions_are_bounded_by_number_and_by_memory(pico_target: BaseModel) -> None:
    whole = [len(pico_target.tokenizer(text)["input_ids"]) for text in TEXTS]
    expected = sum(min(3, max(1, length - 4)) for length in whole)
    assert KlToBaseGauge(pico_target, TEXTS, positions=3).positions == expected
    eight = 8 * 4 * 260 / 2**30
    assert KlToBaseGauge(pico_target, TEXTS, positions=1000, memory_gb=eight).positions == 8
    with pytest.raises(ConfigurationError, match="room for 3 of 4 texts"):
        KlToBaseGauge(pico_target, TEXTS, memory_gb=eight * 0.45)
    # Where some texts are drawn, no more are than there is room for.
    assert KlToBaseGauge(pico_target, TEXTS, most=64, memory_gb=eight * 0.45).positions == 3


def test_batches_change_no_divergence(
    pico_target: BaseModel, adapter: LoraAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = KlToBaseGauge(pico_target, TEXTS).divergences(adapter)
    monkeypatch.setattr("loraport.models.kl._BATCH_TOKENS", 1)
    alone = KlToBaseGauge(pico_target, TEXTS).divergences(adapter)
    torch.testing.assert_close(together.sort().values, alone.sort().values, rtol=1e-3, atol=1e-5)


def test_texts_and_positions_are_drawn_by_the_seed(
    pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    many = [f"{text} {place}" for place in range(5) for text in TEXTS]

    def found(seed: int, most: int | None) -> torch.Tensor:
        gauge = KlToBaseGauge(pico_target, many, most=most, positions=2, seed=seed)
        return gauge.divergences(adapter)

    for most, positions in ((6, 12), (None, 40)):
        first, other = found(0, most), found(1, most)
        assert torch.equal(first, found(0, most))
        assert len(first) == len(other) == positions
        assert not torch.equal(first, other)


def test_an_adapter_without_effect_has_none_and_the_base_is_run_once(
    pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    gauge = KlToBaseGauge(pico_target, TEXTS)
    runs = []
    handle = pico_target.network.register_forward_pre_hook(lambda *_: runs.append(1))
    first = gauge.of(adapter)
    alone = len(runs)
    assert gauge.of(adapter, 0.0) == KlToBase(0.0, 0.0, gauge.positions)
    silent = adapter.map(lambda update: replace(update, B=torch.zeros_like(update.B)))
    assert gauge.measures(silent) == Divergences(gauge.positions, 0.0, 0.0, 0.0, 1.0)
    assert len(runs) == 3 * alone
    handle.remove()
    assert gauge.of(adapter) == first


def test_texts_are_cut(pico_target: BaseModel) -> None:
    texts = ["actor " * 100], [("actor " * 66).strip()]
    long, cut = (KlToBaseGauge(pico_target, text, positions=1000).positions for text in texts)
    assert long == cut > 300


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_texts_without_a_token_are_refused(pico_source: BaseModel, texts: list[str]) -> None:
    with pytest.raises(DataError, match=r"none of \d texts has a token"):
        KlToBaseGauge(pico_source, texts)


def test_what_cannot_be_measured_is_refused_and_taken_off(
    pico_source: BaseModel, pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    with pytest.raises(ConfigurationError, match="positions=0"):
        KlToBaseGauge(pico_target, TEXTS, positions=0)
    with pytest.raises(AdapterError, match="attach it to the base model"):
        KlToBaseGauge(pico_source, TEXTS).of(adapter)
    gauge = KlToBaseGauge(pico_target, TEXTS)
    with pytest.raises(ModelError, match="NaN or infinity"):
        gauge.of(adapter, 1e38)
    with pytest.raises(ModelError, match="NaN or infinity"):
        gauge.measures(adapter.map(lambda update: update.scaled(1e38)))
    assert gauge.of(adapter, 0.0).mean == 0
