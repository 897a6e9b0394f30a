import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from loraport.adapters import LoraAdapter
from loraport.exceptions import ConfigurationError, DataError, ModelError
from loraport.models import BaseModel, attached
from loraport.models.kl import (
    DivergenceGauge,
    Divergences,
    KlToBase,
    KlToBaseGauge,
    divergence,
    js_divergence,
    kl_to_base,
    same_choice,
)

TEXTS = [
    "the film was truly good",
    "a plot",
    "never a very dull scene is the actor and was the plot of a somewhat neutral film",
    "is the scene bad ?",
    "actor",
]

Adapters = Callable[..., LoraAdapter]


@pytest.fixture
def adapter(pico_target: BaseModel, random_adapter: Adapters) -> LoraAdapter:
    return random_adapter(pico_target)


def direct(
    base: BaseModel, adapter: LoraAdapter, texts: list[str] = TEXTS, skip: int = 4
) -> tuple[np.ndarray, Divergences]:
    """KL at all positions behind ``skip``, and all measures, in float64 and a text at a time."""
    kl, js, same = [], [], []
    for text in texts:
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
@pytest.mark.parametrize("skip", [0, 4])
def test_all_positions_have_the_divergence_of_a_direct_computation(
    architecture: str, skip: int, pico: Callable[[str], BaseModel], random_adapter: Adapters
) -> None:
    base = pico(architecture)
    adapter = random_adapter(base)
    gauge = KlToBaseGauge(base, TEXTS, positions=None, skip=skip)
    wanted, _ = direct(base, adapter, skip=skip)
    found = gauge.divergences(adapter).numpy()
    np.testing.assert_allclose(np.sort(found), np.sort(wanted), rtol=1e-3, atol=1e-6)
    measured = gauge.of(adapter)
    assert measured.positions == gauge.positions == len(wanted)
    assert measured.mean == pytest.approx(wanted.mean(), rel=1e-4)
    assert measured.p95 == pytest.approx(np.percentile(wanted, 95), rel=1e-3)
    assert measured.mean > 0.01


def test_small_divergences_are_exact(pico_target: BaseModel, adapter: LoraAdapter) -> None:
    tiny = adapter.map(lambda update: update.scaled(0.01))
    wanted = direct(pico_target, tiny)[0].mean()
    assert 1e-6 < wanted < 1e-3
    assert kl_to_base(pico_target, tiny, TEXTS, positions=None).mean == pytest.approx(
        wanted, rel=0.02
    )


def test_kl_grows_with_the_square_of_a_small_scale(
    pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    gauge = KlToBaseGauge(pico_target, TEXTS)
    small, double = (gauge.of(adapter, scale).mean for scale in (0.002, 0.004))
    assert double / small == pytest.approx(4, rel=0.02)


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


def test_mean_and_percentile_are_those_of_the_positions() -> None:
    found = KlToBase.over(torch.arange(101, dtype=torch.float32))
    assert found == KlToBase(50.0, 95.0, 101)


def test_no_more_positions_than_asked_for_are_taken(pico_target: BaseModel) -> None:
    whole = [len(pico_target.tokenizer(text)["input_ids"]) for text in TEXTS]
    gauge = KlToBaseGauge(pico_target, TEXTS, positions=3, skip=4)
    assert gauge.positions == sum(min(3, max(1, length - 4)) for length in whole)


def test_memory_bounds_the_positions(pico_target: BaseModel) -> None:
    ten = 10 * 4 * 260 / 2**30
    assert KlToBaseGauge(pico_target, TEXTS, positions=None, memory_gb=ten).positions == 10
    with pytest.raises(ConfigurationError, match="room for 4 of 5 texts"):
        KlToBaseGauge(pico_target, TEXTS, memory_gb=ten * 0.45)


def test_batches_change_no_divergence(pico_target: BaseModel, adapter: LoraAdapter) -> None:
    together = KlToBaseGauge(pico_target, TEXTS).divergences(adapter)
    alone = KlToBaseGauge(pico_target, TEXTS, batch_tokens=1).divergences(adapter)
    torch.testing.assert_close(together.sort().values, alone.sort().values, rtol=1e-3, atol=1e-5)


def test_same_seed_gives_the_same_bits_and_another_seed_other_positions(
    pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    def measured(seed: int) -> torch.Tensor:
        return KlToBaseGauge(pico_target, TEXTS, positions=2, seed=seed).divergences(adapter)

    assert torch.equal(measured(1), measured(1))
    assert not torch.equal(measured(1), measured(2))


def test_an_adapter_without_effect_has_none(pico_target: BaseModel, adapter: LoraAdapter) -> None:
    gauge = KlToBaseGauge(pico_target, TEXTS)
    assert gauge.of(adapter, 0.0) == KlToBase(0.0, 0.0, gauge.positions)
    silent = adapter.map(lambda update: replace(update, B=torch.zeros_like(update.B)))
    assert gauge.of(silent).mean == 0


def test_texts_are_cut(pico_target: BaseModel) -> None:
    long, cut = "actor " * 100, " ".join(["actor"] * 4)
    positions = [
        KlToBaseGauge(pico_target, [text], positions=None, max_chars=24).positions
        for text in (long, cut)
    ]
    assert positions[0] == positions[1] == 20


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_texts_without_a_token_are_refused(pico_source: BaseModel, texts: list[str]) -> None:
    with pytest.raises(DataError, match=r"none of \d texts has a token"):
        KlToBaseGauge(pico_source, texts)


@pytest.mark.parametrize(("name", "value"), [("positions", 0), ("skip", -1), ("max_chars", 0)])
def test_numbers_that_leave_nothing_are_refused(
    pico_target: BaseModel, name: str, value: int
) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}={value}"):
        KlToBaseGauge(pico_target, TEXTS, **{name: value})


def test_adapter_of_another_model_is_refused(
    pico_source: BaseModel, random_adapter: Adapters, adapter: LoraAdapter
) -> None:
    with pytest.raises(ModelError, match="attach it to the base model"):
        kl_to_base(pico_source, adapter, TEXTS)


def test_an_adapter_that_overflows_is_refused_and_taken_off(
    pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    gauge = KlToBaseGauge(pico_target, TEXTS)
    with pytest.raises(ModelError, match="NaN or infinity"):
        gauge.of(adapter, 1e38)
    assert gauge.of(adapter, 0.0).mean == 0


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text"])
def test_all_measures_are_those_of_a_direct_computation(
    architecture: str, pico: Callable[[str], BaseModel], random_adapter: Adapters
) -> None:
    base = pico(architecture)
    adapter = random_adapter(base)
    found = DivergenceGauge(base, TEXTS, positions=1000).of(adapter)
    _, wanted = direct(base, adapter)
    assert found.positions == wanted.positions > 100
    assert found.top1 == wanted.top1
    assert 0 < found.top1 < 1
    for name in ("kl", "kl_p95", "js"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-3)
    assert 0 < found.js < math.log(2)


def test_an_adapter_without_effect_changes_nothing(
    pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    silent = adapter.map(lambda update: replace(update, B=torch.zeros_like(update.B)))
    found = DivergenceGauge(pico_target, TEXTS).of(silent)
    assert found == Divergences(found.positions, 0.0, 0.0, 0.0, 1.0)
    assert found.positions > 0


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


@pytest.mark.parametrize("step", [1e-2, 1e-4])
def test_tiny_js_over_a_large_vocabulary_is_not_lost_in_rounding(step: float) -> None:
    own = logits(4, 50_000, 2)
    moved = own + step * logits(4, 50_000, 3) / 4
    p, q = (values.double().softmax(dim=-1) for values in (own, moved))
    m = (p + q) / 2
    wanted = ((p * (p / m).log()).sum(dim=-1) + (q * (q / m).log()).sum(dim=-1)) / 2
    found = js_divergence(own.log_softmax(dim=-1), moved.log_softmax(dim=-1))
    torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=0)


def test_same_choice_compares_the_most_likely_tokens() -> None:
    one = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]]).log()
    other = torch.tensor([[0.6, 0.1, 0.3], [0.4, 0.3, 0.3]]).log()
    assert same_choice(one, other).tolist() == [True, False]


def test_of_many_texts_some_are_drawn_by_the_seed(
    pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    many = [f"{text} {place}" for place in range(20) for text in TEXTS]

    def found(seed: int) -> Divergences:
        return DivergenceGauge(pico_target, many, most=10, positions=2, seed=seed).of(adapter)

    assert found(0) == found(0)
    assert found(0).positions == found(1).positions == 20
    assert found(0) != found(1)


def test_memory_bounds_texts_and_positions(pico_target: BaseModel, adapter: LoraAdapter) -> None:
    three = 3.5 * 4 * 260 / 2**30
    found = DivergenceGauge(pico_target, TEXTS, memory_gb=three).of(adapter)
    assert found.positions == 3
    six = 2 * three
    assert DivergenceGauge(pico_target, TEXTS[:3], memory_gb=six).of(adapter).positions == 6


def test_the_base_is_run_once_for_all_adapters(
    pico_target: BaseModel, adapter: LoraAdapter, random_adapter: Adapters
) -> None:
    gauge = DivergenceGauge(pico_target, TEXTS)
    runs = []
    handle = pico_target.network.register_forward_pre_hook(lambda *_: runs.append(1))
    first = gauge.of(adapter)
    alone = len(runs)
    second = gauge.of(random_adapter(pico_target, seed=1))
    handle.remove()
    assert len(runs) == 2 * alone
    assert first != second
    assert gauge.of(adapter) == first


def test_what_cannot_be_measured_is_refused(
    pico_source: BaseModel, pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    with pytest.raises(DataError, match="none of 1 texts has a token"):
        DivergenceGauge(pico_source, [""])
    with pytest.raises(ConfigurationError, match="positions=0"):
        DivergenceGauge(pico_target, TEXTS, positions=0)
    gauge = DivergenceGauge(pico_target, TEXTS)
    with pytest.raises(ModelError, match="NaN or infinity"):
        gauge.of(adapter.map(lambda update: update.scaled(1e38)))
    with pytest.raises(ModelError, match="attach it to the base model"):
        DivergenceGauge(pico_source, TEXTS).of(adapter)
