"""The Python API: its worked example as it is printed, and what it refuses."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import loraport
from loraport import api
from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error, write_adapter
from loraport.adapters.merge import Linear
from loraport.adapters.sparsify import DropComponents
from loraport.alignment.permutations import ExactPlan, SinkhornPlan
from loraport.exceptions import ConfigurationError, ModelError, OutputError, VerificationError
from loraport.mappers.cartridge import Cartridge, CartridgeSite
from loraport.mappers.heads import ProjectionHead
from loraport.models import BaseModel, StreamedWeights


@pytest.fixture
def places(tmp_path: Path, pico_source: BaseModel, pico_target: BaseModel) -> Path:
    """A folder with SOURCE, TARGET and ADAPTER."""
    for name, base in (("SOURCE", pico_source), ("TARGET", pico_target)):
        base.network.save_pretrained(tmp_path / name)
        base.tokenizer.save_pretrained(tmp_path / name)
    generator = torch.Generator().manual_seed(0)
    sites = {
        site: LowRank(
            torch.randn(6, shape[1], generator=generator),
            torch.randn(shape[0], 6, generator=generator),
        )
        for site, shape in pico_source.sites.shapes.items()
    }
    write_adapter(LoraAdapter(sites, pico_source.name), tmp_path / "ADAPTER")
    return tmp_path


@pytest.fixture
def source(places: Path) -> StreamedWeights:
    return loraport.open_model(places / "SOURCE")


@pytest.fixture
def target(places: Path) -> StreamedWeights:
    return loraport.open_model(places / "TARGET")


def example() -> str:
    """The code block of the module's docstring."""
    block = str(api.__doc__).split(".. code-block:: python")[1].split("\n``PORTED``")[0]
    return textwrap.dedent(block)


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_worked_example_runs_as_printed(places, monkeypatch, capsys, pico_target):
    monkeypatch.chdir(places)
    exec(example(), {})
    assert "21 sites, logits change by up to" in capsys.readouterr().out
    ported = loraport.read_adapter(places / "PORTED")
    assert {update.rank for update in ported.values()} == {4}
    network = type(pico_target.network).from_pretrained(places / "TARGET")
    ids = torch.arange(2, 12)[None]
    with torch.inference_mode():
        plain = network(input_ids=ids).logits
        model = PeftModel.from_pretrained(network, str(places / "PORTED"))
        assert not torch.equal(model(input_ids=ids).logits, plain)


def test_example_of_a_cartridge_runs_as_printed(places, monkeypatch, pico_target):
    target, generator = Site(1, Role.O), torch.Generator().manual_seed(0)
    out, in_ = pico_target.sites.shapes[target]
    reader, writer = (ProjectionHead(i, o, 4, generator) for i, o in ((in_, 6), (5, out)))
    for head in (reader, writer):
        head.start(torch.randn(head.skip.weight.shape, generator=generator), head.skip.bias)
    update = LowRank(torch.ones(1, 6), torch.ones(5, 1))
    module = torch.randn(5, 6, generator=generator), torch.zeros(5)
    site = CartridgeSite(Site(0, Role.O), target, 1.0, reader, writer, *module, update)
    Cartridge(pico_target.name, [site]).save(places / "CARTRIDGE")
    monkeypatch.chdir(places)
    ids = torch.arange(2, 12)[None]
    names: dict[str, Any] = {"AutoModelForCausalLM": AutoModelForCausalLM, "ids": ids}
    block = str(api.__doc__).split(".. code-block:: python")[2]
    exec("import loraport" + textwrap.dedent(block), names)
    plain = names["network"].generate(ids, max_new_tokens=20)
    assert names["written"].shape[1] > 10
    assert not torch.equal(names["written"], plain)


def test_every_name_is_there_and_no_other_and_importing_them_imports_no_torch():
    code = "import sys, loraport; loraport.__all__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    for name in loraport.__all__:
        assert getattr(loraport, name) is getattr(api, name)
        assert name in dir(loraport)
    with pytest.raises(AttributeError, match="no attribute 'transfer'"):
        _ = loraport.transfer  # type: ignore[attr-defined]


def test_options_of_a_port(places, source, target):
    adapter = loraport.read_adapter(places / "ADAPTER")
    mapper = loraport.choose_mapper("copy", source, target)
    plain = loraport.port(adapter, mapper, target)
    halved = loraport.port(adapter, mapper, target, scale=0.5, sparsify=DropComponents(0.5))
    for site, update in halved.items():
        expected = plain[site].truncated(3).matrix.dense() / 2
        torch.testing.assert_close(update.dense(), expected, rtol=1e-4, atol=1e-5)
    twice = loraport.port([adapter, adapter], mapper, target, merge=Linear())
    assert relative_error(twice, plain.map(lambda update: update.scaled(2.0))) < 1e-6
    with pytest.raises(ConfigurationError, match=r"2 adapters were given .* and merge="):
        loraport.port([adapter, adapter], mapper, target)
    cached = loraport.choose_mapper("cross_lora", source, target, cache=places / "cache", rank=4)
    loraport.port(adapter, cached, target)
    assert list((places / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cross-lora", {}, r"no mapper 'cross-lora'; it takes one of .*, copy, cross_lora"),
        ("cross_lora", {"ranks": 3}, r"no option ranks; it takes variant, rank"),
        ("cross_lora", {"rank": 0}, r"mapper\.rank is 0"),
        ("pca_mlp", {}, r"is learned: fit it by `python train\.py mapper=pca_mlp`"),
    ],
)
def test_wrong_choices_are_refused(name, options, message, source, target):
    with pytest.raises(ConfigurationError, match=message):
        loraport.choose_mapper(name, source, target, **options)


def test_options_that_are_objects_are_built_or_taken(source, target):
    mapper: Any = loraport.choose_mapper("optimal_transport", source, target)
    assert mapper.align == ExactPlan()
    mapper = loraport.choose_mapper("optimal_transport", source, target, plan=SinkhornPlan(0.1))
    assert mapper.align == SinkhornPlan(0.1)


def test_place_that_is_no_model_is_refused(places):
    with pytest.raises(ModelError, match="is no folder; a base model is given as"):
        loraport.open_model(places / "ELSEWHERE")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        loraport.open_model(places / "ADAPTER")


def test_save_leaves_nothing_that_fails_and_replaces_nothing_unasked(places, source, target):
    adapter = loraport.read_adapter(places / "ADAPTER")
    ported = loraport.port(adapter, loraport.choose_mapper("random", source, target), target)
    before = sorted(path.name for path in places.iterdir())
    with pytest.raises(VerificationError, match=r"PEFT cannot put the adapter .* size mismatch"):
        loraport.save(adapter, places / "WRONG", target)
    assert sorted(path.name for path in places.iterdir()) == before
    loraport.save(ported, places / "OUT", target)
    with pytest.raises(OutputError, match="OUT exists already"):
        loraport.save(ported, places / "OUT", target)
    loraport.save(ported, places / "OUT", target, overwrite=True)
