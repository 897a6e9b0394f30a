import dataclasses

import pytest
import torch

from loraport.exceptions import ConfigurationError, DataError
from loraport.models import BaseModel
from loraport.workflows.pair_diagnosis import Diagnosis
from loraport.workflows.probe_states import ProbeStates

from .test_probe_states import SENTENCES, Texts

QUICK = Diagnosis(rows=200, per_token=12, permutations=40)


def states_of(source, target, surface=None) -> ProbeStates:
    rows = len(source[0])
    noise = torch.randn(rows, 16, generator=torch.Generator().manual_seed(99))
    surfaces = (noise if surface is None else surface,)
    places = torch.arange(rows)
    return ProbeStates(tuple(source), tuple(target), surfaces, surfaces, places, places, rows)


def noise(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def turned(x: torch.Tensor, width: int, seed: int) -> torch.Tensor:
    """An isometry into a wider space, with some noise."""
    q = torch.linalg.qr(noise(width, width, seed)).Q[: x.shape[1]]
    return x @ q + 0.05 * noise(len(x), width, seed + 1)


def judged(states: ProbeStates, diagnosis: Diagnosis = QUICK):
    return diagnosis.judge(states, diagnosis.similarity(states, diagnosis.measure))


def test_planted_layers_are_covered_and_found():
    source = [noise(200, 12, seed) for seed in range(4)]
    target = [turned(layer, 20, 50) for layer in source]
    found = judged(states_of(source, target))
    assert found.coverage == found.identification == 1.0
    assert torch.tensor(found.similarity).argmax(dim=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("rows", [50, 300, 1000])
def test_independent_noise_is_not_covered(rows: int):
    source = [noise(rows, 64, seed) for seed in range(4)]
    target = [noise(rows, 96, 10 + seed) for seed in range(4)]
    assert judged(states_of(source, target)).coverage == 0.0


def test_what_the_bare_text_explains_is_not_covered():
    """Both sides hold the text's surface and nothing else, and so do models with random weights."""
    surface = noise(200, 16, 7)
    source = [turned(surface, 24, seed) for seed in range(3)]
    target = [turned(surface, 32, 10 + seed) for seed in range(3)]
    assert judged(states_of(source, target, surface)).coverage == 0.0
    assert judged(states_of(source, target)).coverage > 0.0


def test_models_with_random_weights_are_not_covered(pico_source: BaseModel, pico_target: BaseModel):
    found = QUICK.compare(pico_source, pico_target, Texts(), lambda what, done, total: None)
    assert found.coverage < 0.5
    assert len(found.similarity) == 3
    assert len(found.similarity[0]) == 2


def test_a_model_is_covered_by_itself(pico_source: BaseModel):
    """Of random weights, so that only the calibration by the text is switched off."""
    diagnosis = dataclasses.replace(QUICK, surplus=0.0)
    found = diagnosis.compare(pico_source, pico_source, Texts(), lambda what, done, total: None)
    assert found.coverage == 1.0


def test_probes_with_hardly_any_common_word_are_refused(
    pico_source: BaseModel, pico_target: BaseModel
):
    class One(Texts):
        def texts(self, split: str):
            yield from ["the film is good"] * len(SENTENCES)

    with pytest.raises(DataError, match="diagnosis=none"):
        QUICK.compare(pico_source, pico_target, One(), lambda what, done, total: None)


@pytest.mark.parametrize(
    "options",
    [
        *({"rows": 10}, {"per_token": 0}, {"neighbours": 0}, {"neighbours": 40}),
        *({"permutations": 3}, {"minimum": 1.5}, {"surplus": -0.1}),
    ],
    ids=str,
)
def test_numbers_out_of_range(options):
    with pytest.raises(ConfigurationError, match=f"diagnosis.{next(iter(options))}"):
        Diagnosis(**options)
