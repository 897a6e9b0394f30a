from collections.abc import Callable

import pytest
from transformers import AutoConfig

from loraport.adapters import Role, Site
from loraport.exceptions import ModelError
from loraport.models import ARCHITECTURES, BaseModel, SiteTable


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_table_equals_the_modules_of_a_real_network(
    architecture: str, pico: Callable[[str], BaseModel]
) -> None:
    base = pico(architecture)
    actual = {
        site: tuple(module.weight.shape)
        for name, module in base.network.named_modules()
        if (site := Site.parse(name)) is not None
    }
    assert dict(base.sites.shapes) == actual
    assert base.sites.architecture == architecture
    assert base.sites.layers == 2


def test_sites_are_in_the_order_of_the_adapters(pico_target: BaseModel) -> None:
    sites = list(pico_target.sites.shapes)
    assert sites == sorted(sites, key=lambda site: site.sort_key)
    chosen = pico_target.sites.of_roles((Role.V, Role.Q))
    assert [site.label for site in chosen] == ["0.q", "0.v", "1.q", "1.v", "2.q", "2.v"]


def test_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"'gpt2'.*gemma3_text.*llama.*qwen3") as caught:
        SiteTable.of(AutoConfig.for_model("gpt2"))
    assert "model.layers.0.self_attn.q_proj" in str(caught.value)
