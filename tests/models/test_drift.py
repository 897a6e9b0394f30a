import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from loraport.adapters import LoraAdapter
from loraport.exceptions import ConfigurationError, DataError, ModelError
from loraport.models import BaseModel, attached
from loraport.models.drift import Drift, DriftGauge, divergence, drift

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


def reference(base: BaseModel, adapter: LoraAdapter, text: str, skip: int) -> np.ndarray:
    """The divergence at every position behind ``skip``, in float64 and a text at a time."""
    ids = torch.tensor([base.tokenizer(text)["input_ids"]])

    def probabilities() -> np.ndarray:
        with torch.inference_mode():
            logits = base.network(input_ids=ids).logits[0].double().numpy()
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    own = probabilities()
    with attached(base.network, adapter):
        other = probabilities()
    whole = (own * np.log(own / other)).sum(axis=1)
    return whole[min(skip, len(whole) - 1) :]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("skip", [0, 4])
def test_all_positions_have_the_divergence_of_a_direct_computation(
    architecture: str, skip: int, pico: Callable[[str], BaseModel], random_adapter: Adapters
) -> None:
    base = pico(architecture)
    adapter = random_adapter(base)
    gauge = DriftGauge(base, TEXTS, positions=None, skip=skip)
    wanted = np.concatenate([reference(base, adapter, text, skip) for text in TEXTS])
    found = gauge.divergences(adapter).numpy()
    np.testing.assert_allclose(np.sort(found), np.sort(wanted), rtol=1e-3, atol=1e-6)
    measured = gauge.of(adapter)
    assert measured.positions == gauge.positions == len(wanted)
    assert measured.mean == pytest.approx(wanted.mean(), rel=1e-4)
    assert measured.p95 == pytest.approx(np.percentile(wanted, 95), rel=1e-3)
    assert measured.mean > 0.01


def test_small_divergences_are_exact(pico_target: BaseModel, adapter: LoraAdapter) -> None:
    tiny = adapter.map(lambda update: update.scaled(0.01))
    wanted = np.concatenate([reference(pico_target, tiny, text, 4) for text in TEXTS]).mean()
    assert 1e-6 < wanted < 1e-3
    assert drift(pico_target, tiny, TEXTS, positions=None).mean == pytest.approx(wanted, rel=0.02)


def test_drift_grows_with_the_square_of_a_small_scale(
    pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    gauge = DriftGauge(pico_target, TEXTS)
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
    found = Drift.over(torch.arange(101, dtype=torch.float32))
    assert found == Drift(50.0, 95.0, 101)


def test_no_more_positions_than_asked_for_are_taken_and_none_twice(pico_target: BaseModel) -> None:
    whole = [len(pico_target.tokenizer(text)["input_ids"]) for text in TEXTS]
    gauge = DriftGauge(pico_target, TEXTS, positions=3, skip=4)
    assert gauge.positions == sum(min(3, max(1, length - 4)) for length in whole)
    places = [place for batch in gauge._batches for place in batch.places.tolist()]
    assert len(places) == len(set(places))


def test_memory_bounds_the_positions(pico_target: BaseModel) -> None:
    ten = 10 * 4 * 260 / 2**30
    assert DriftGauge(pico_target, TEXTS, positions=None, memory_gb=ten).positions == 10
    with pytest.raises(ConfigurationError, match="room for 4 of 5 texts"):
        DriftGauge(pico_target, TEXTS, memory_gb=ten * 0.45)


def test_batches_change_no_divergence(pico_target: BaseModel, adapter: LoraAdapter) -> None:
    together = DriftGauge(pico_target, TEXTS).divergences(adapter)
    alone = DriftGauge(pico_target, TEXTS, batch_tokens=1).divergences(adapter)
    torch.testing.assert_close(together.sort().values, alone.sort().values, rtol=1e-3, atol=1e-5)


def test_same_seed_gives_the_same_bits_and_another_seed_other_positions(
    pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    def measured(seed: int) -> torch.Tensor:
        return DriftGauge(pico_target, TEXTS, positions=2, seed=seed).divergences(adapter)

    assert torch.equal(measured(1), measured(1))
    assert not torch.equal(measured(1), measured(2))


def test_an_adapter_without_effect_has_no_drift(
    pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    gauge = DriftGauge(pico_target, TEXTS)
    assert gauge.of(adapter, 0.0) == Drift(0.0, 0.0, gauge.positions)
    silent = adapter.map(lambda update: replace(update, B=torch.zeros_like(update.B)))
    assert gauge.of(silent).mean == 0


def test_texts_are_cut(pico_target: BaseModel) -> None:
    long, cut = "actor " * 100, " ".join(["actor"] * 4)
    positions = [
        DriftGauge(pico_target, [text], positions=None, max_chars=24).positions
        for text in (long, cut)
    ]
    assert positions[0] == positions[1] == 20


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_texts_without_a_token_are_refused(pico_source: BaseModel, texts: list[str]) -> None:
    with pytest.raises(DataError, match=r"none of \d texts has a token"):
        DriftGauge(pico_source, texts)


@pytest.mark.parametrize(("name", "value"), [("positions", 0), ("skip", -1), ("max_chars", 0)])
def test_numbers_that_leave_nothing_are_refused(
    pico_target: BaseModel, name: str, value: int
) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}={value}"):
        DriftGauge(pico_target, TEXTS, **{name: value})


def test_adapter_of_another_model_is_refused(
    pico_source: BaseModel, random_adapter: Adapters, adapter: LoraAdapter
) -> None:
    with pytest.raises(ModelError, match="attach it to the base model"):
        drift(pico_source, adapter, TEXTS)


def test_an_adapter_that_overflows_is_refused_and_taken_off(
    pico_target: BaseModel, adapter: LoraAdapter
) -> None:
    gauge = DriftGauge(pico_target, TEXTS)
    with pytest.raises(ModelError, match="NaN or infinity"):
        gauge.of(adapter, 1e38)
    assert gauge.of(adapter, 0.0).mean == 0
