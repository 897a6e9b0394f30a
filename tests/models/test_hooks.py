import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from loraport.adapters import LoraAdapter, LowRank, Role, Site, write_adapter
from loraport.exceptions import AdapterError
from loraport.models import ARCHITECTURES, BaseModel, attached
from loraport.models.hooks import SIDES, Tap, tap_widths

IDS = torch.arange(24).reshape(2, 12) % 20 + 2


def logits(network: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return network(input_ids=IDS).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_equal_those_of_peft(
    architecture: str,
    pico: Callable[[str], BaseModel],
    random_adapter: Callable[..., LoraAdapter],
    tmp_path: Path,
) -> None:
    base = pico(architecture)
    adapter = random_adapter(base)
    plain = logits(base.network)
    with attached(base.network, adapter):
        ours = logits(base.network)
    write_adapter(adapter, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT cannot look up the vocabulary of a pico model.
        peft = PeftModel.from_pretrained(base.network, tmp_path / "adapter")
    torch.testing.assert_close(ours, logits(peft), rtol=1e-5, atol=1e-5)
    assert (ours - plain).abs().max() > 0.1


def test_base_is_bit_equal_afterwards_also_after_an_error(
    pico_target: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> None:
    plain = logits(pico_target.network)
    with attached(pico_target.network, None):
        assert torch.equal(logits(pico_target.network), plain)
    with (
        pytest.raises(RuntimeError, match="planted"),
        attached(pico_target.network, random_adapter(pico_target)),
    ):
        raise RuntimeError("planted")
    assert torch.equal(logits(pico_target.network), plain)


@pytest.mark.parametrize(
    ("site", "update", "message"),
    [
        (
            Site(7, Role.Q),
            LowRank(torch.ones(2, 32), torch.ones(32, 2)),
            r"model\.layers\.7\.self_attn\.q_proj.*2 layers",
        ),
        (
            Site(1, Role.DOWN),
            LowRank(torch.ones(2, 5), torch.ones(32, 2)),
            r"\(32, 5\) at .*1\.mlp\.down_proj.*\(32, 40\)",
        ),
    ],
    ids=["site", "shape"],
)
def test_what_does_not_fit_is_named_and_nothing_stays_attached(
    site: Site,
    update: LowRank,
    message: str,
    pico_source: BaseModel,
    random_adapter: Callable[..., LoraAdapter],
) -> None:
    adapter = random_adapter(pico_source)
    plain = logits(pico_source.network)
    with (
        pytest.raises(AdapterError, match=message),
        attached(pico_source.network, replace(adapter, sites={**adapter.sites, site: update})),
    ):
        pass
    assert torch.equal(logits(pico_source.network), plain)


class Planted:
    """Adds one to what the first layer's q puts out."""

    def hooks(self, network: PreTrainedModel) -> list[RemovableHandle]:
        module = network.get_submodule(Site(0, Role.Q).module_name)
        return [module.register_forward_hook(lambda _module, _inputs, output: output + 1)]

    def content_hash(self) -> str:
        return "planted"


def test_whatever_brings_its_own_hooks_is_attached_and_taken_off(pico_source: BaseModel) -> None:
    plain = logits(pico_source.network)
    with attached(pico_source.network, Planted()):
        assert not torch.equal(logits(pico_source.network), plain)
    assert torch.equal(logits(pico_source.network), plain)


def test_modules_that_read_the_same_share_a_tap() -> None:
    taps = {Tap.input(Site(1, role)) for role in Role}
    assert len(taps) == 4
    assert Tap.input(Site(1, Role.Q)) == Tap.input(Site(1, Role.K)) == Tap.input(Site(1, Role.V))
    assert Tap.input(Site(1, Role.GATE)) == Tap.input(Site(1, Role.UP))
    assert len({Tap.output(Site(1, role)) for role in Role}) == 7


def test_labels_are_distinct_and_readable(pico_target: BaseModel) -> None:
    sites = list(pico_target.sites.shapes)
    taps = {*map(Tap.input, sites), *map(Tap.output, sites), *map(Tap.residual, range(3))}
    assert len({tap.label_on(side) for tap in taps for side in SIDES}) == 2 * len(taps)
    assert Tap.input(Site(3, Role.V)).label == "3.q.input"
    assert Tap.output(Site(3, Role.V)).label_on("target") == "target.3.v.output"
    assert Tap.residual(3).label_on("source") == "source.3.residual"


def test_widths_are_those_of_the_weights(pico_target: BaseModel) -> None:
    sites = pico_target.sites
    for site, (out, in_) in sites.shapes.items():
        taps = [Tap.input(site), Tap.output(site), Tap.residual(site.layer)]
        assert list(tap_widths(sites, taps).values()) == [in_, out, 48]
