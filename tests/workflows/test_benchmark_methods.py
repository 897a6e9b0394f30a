import pytest
from omegaconf import OmegaConf

from loraport.exceptions import ConfigurationError
from loraport.workflows.benchmark_methods import CONTROLS, Method, choices, chosen_methods


def chosen(methods: list[str], options: dict[str, list[str]] | None = None) -> list[Method]:
    return chosen_methods(OmegaConf.create({"methods": methods, "method_options": options or {}}))


def test_a_method_is_a_mapper_a_mapper_with_a_refinement_or_the_default():
    plain, refined, default = chosen(["global_ridge", "cross_lora+drift_budget", "default"])
    assert plain.overrides == ["mapper=global_ridge", "refine=none"]
    assert refined.overrides == ["mapper=cross_lora", "refine=drift_budget"]
    # What transfer.py does where neither is named: see conf/transfer.yaml.
    assert default.overrides == ["mapper=noop", "refine=corpus_distill"]


def test_the_default_method_is_the_default_of_transfer():
    transfer = OmegaConf.load("conf/transfer.yaml").defaults
    named = {k: v for entry in transfer if hasattr(entry, "items") for k, v in entry.items()}
    [refine] = OmegaConf.load(f"conf/refine/{named['refine']}.yaml").defaults
    default = Method.named("default")
    assert (default.mapper, default.refine) == (named["mapper"], refine)


def test_all_are_the_mappers_that_are_no_controls_and_the_default():
    names = [method.name for method in chosen(["all"])]
    assert set(names) == {*choices("mapper"), "default"} - set(CONTROLS)
    assert names[-1] == "default"


def test_options_reach_their_method_alone():
    first, second = chosen(["global_ridge", "pca_ridge"], {"pca_ridge": ["mapper.components=2"]})
    assert "mapper.components=2" not in first.overrides
    assert second.overrides[-1] == "mapper.components=2"


def test_a_method_that_is_named_twice_is_run_once():
    assert [m.name for m in chosen(["mean", "mean"])] == ["mean"]


@pytest.mark.parametrize("name", ["global_rigde", "global_ridge+", "global_ridge+distill", ""])
def test_strangers_are_refused_with_what_there_is(name: str):
    with pytest.raises(ConfigurationError, match=r"methods names .* takes "):
        chosen([name])


def test_options_of_no_method_are_refused():
    with pytest.raises(ConfigurationError, match="method_options names ridge"):
        chosen(["global_ridge"], {"ridge": ["mapper.space=factors"]})
