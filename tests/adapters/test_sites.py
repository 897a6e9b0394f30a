import itertools

import pytest

from loraport.adapters import Role, Site

EVERY = [Site(layer, role) for layer in (0, 1, 12) for role in Role]


@pytest.mark.parametrize("site", EVERY, ids=lambda site: site.label)
def test_names_lead_back_to_the_site(site: Site) -> None:
    assert Site.parse(site.module_name) == site
    assert Site.parse(f"base_model.model.{site.module_name}") == site
    assert Site.from_label(site.label) == site


def test_module_names_are_those_of_the_models() -> None:
    assert Site(3, Role.Q).module_name == "model.layers.3.self_attn.q_proj"
    assert Site(0, Role.O).module_name == "model.layers.0.self_attn.o_proj"
    assert Site(11, Role.DOWN).module_name == "model.layers.11.mlp.down_proj"


@pytest.mark.parametrize(
    "name",
    [
        "lm_head",
        "model.embed_tokens",
        "model.layers.3.mlp.q_proj",
        "model.layers.3.self_attn.up_proj",
        "model.layers.3.self_attn.qkv_proj",
        "model.layers.x.self_attn.q_proj",
        "model.layers.3.self_attn.q_proj.lora_A",
        "model.blocks.3.self_attn.q_proj",
        "",
    ],
)
def test_other_modules_are_no_sites(name: str) -> None:
    assert Site.parse(name) is None


def test_order_is_by_layer_as_a_number_then_as_in_a_layer() -> None:
    for shuffled in itertools.islice(itertools.permutations(EVERY), 0, 5000, 617):
        assert sorted(shuffled, key=lambda site: site.sort_key) == EVERY


def test_label_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="qkv"):
        Site.from_label("3.qkv")
