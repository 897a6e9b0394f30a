import pytest

from loraport.reporting.diagnosis_words import fit_warnings, mean_fit, verdict_words
from loraport.reporting.intersection_map import ModuleFit


def fit(target: str, inputs: float, outputs: float, **fields: float) -> ModuleFit:
    return ModuleFit(target=target, source=target, inputs=inputs, outputs=outputs, **fields)


@pytest.mark.parametrize(
    ("coverage", "said"),
    [(0.0, "Not compatible: 0%"), (0.49, "Not compatible: 49%"), (0.5, "Compatible: 50%")],
)
def test_the_minimum_decides(coverage: float, said: str) -> None:
    words = verdict_words("S", "T", coverage, 0.5, 1.0)
    assert words.startswith(said)
    assert "layers of T have a counterpart in S" in words


def test_layers_that_are_not_found_again_are_not_sure() -> None:
    assert "not sure" in verdict_words("S", "T", 1.0, 0.5, 0.2)
    assert "not sure" not in verdict_words("S", "T", 1.0, 0.5, 0.9)


def test_maps_that_predict_nothing_are_named() -> None:
    good, bad = fit("0.q", 0.5, 0.5), fit("1.q", -0.5, 0.0)
    one, other = fit_warnings([good, bad], adapted=False)
    assert "1 of 2 input maps" in one
    assert "1 of 2 output maps" in other
    assert "1.q" in one
    assert "0.q" not in one
    assert list(fit_warnings([good], adapted=False)) == []


def test_with_an_adapter_its_directions_count() -> None:
    modules = [fit("0.q", 0.9, 0.9, adapter_inputs=-0.1, adapter_outputs=0.4)]
    (warning,) = fit_warnings(modules, adapted=True)
    assert "in the directions that the adapter uses" in warning


def test_means_are_by_role() -> None:
    found = mean_fit([fit("0.q", 0.2, 0.4), fit("1.q", 0.4, 0.6), fit("0.v", 1.0, 1.0)])
    assert found["q"] == pytest.approx({"inputs": 0.3, "outputs": 0.5})
    assert found["v"]["inputs"] == 1.0
