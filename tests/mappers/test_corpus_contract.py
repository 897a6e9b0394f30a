"""What holds beyond the contract for every mapper that is trained on generic text."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.utils import instantiate
from lightning import Trainer

from loraport.adapters import LoraAdapter, Role, Site, relative_error
from loraport.alignment.layer_matching import LayerPairing
from loraport.exceptions import AdapterError, ConfigurationError
from loraport.mappers import load_mapper
from loraport.mappers.from_text import CorpusMapper, ModelPair
from loraport.mappers.transport import TransportMapper
from loraport.models import BaseModel

CONF = Path(__file__).resolve().parents[2] / "conf" / "mapper"
NAMES = sorted(
    path.stem for path in CONF.glob("*.yaml") if "/data: text_corpus" in path.read_text()
)
# How far from the adapter itself a mapper between a model and itself ends: what its ridge shrinks.
SAME_MODEL_ERROR = {"adjoint_transport": 0.02, "procrustes": 1e-4, "transport": 0.02}
# Heads with an MLP, here after a single epoch, and made linear on text:
SAME_MODEL_ERROR["cast"] = 0.1

pytestmark = [
    # The aligned batches are in memory already.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    # A closed form has no optimizer, by design.
    pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer.*"),
    # One that streams rows from disk knows how many batches they are.
    pytest.mark.filterwarnings("ignore:.*`IterableDataset` has `__len__` defined.*"),
]


@pytest.fixture(scope="module")
def models(pico: Callable[[str], BaseModel], pico_target: BaseModel) -> ModelPair:
    """Llama of width 32 to Gemma of width 48, other depth and heads, byte tokens."""
    return ModelPair(pico("llama"), pico_target)


@pytest.fixture(scope="module")
def built(recipe: Callable[..., object]) -> Callable[..., CorpusMapper]:
    """Build a mapper by its YAML."""

    def make(name: str, *overrides: str) -> CorpusMapper:
        config = recipe(name, *overrides)
        mapper: CorpusMapper = instantiate(config.mapper)  # type: ignore[attr-defined]
        return mapper

    return make


@pytest.fixture(scope="module")
def fits() -> dict[str, CorpusMapper]:
    """What has been fitted already: most tests look at the same fit."""
    return {}


@pytest.fixture
def fitted(
    built: Callable[..., CorpusMapper],
    fit_on_text: Callable[..., Path],
    models: ModelPair,
    fits: dict[str, CorpusMapper],
) -> Callable[[str], CorpusMapper]:
    """Fit a mapper as its YAML says, once."""

    def make(name: str) -> CorpusMapper:
        if name not in fits:
            mapper = built(name)
            fit_on_text(mapper, models)
            fits[name] = mapper
        return fits[name]

    return make


@pytest.fixture
def adapter(random_adapter: Callable[..., LoraAdapter], models: ModelPair) -> LoraAdapter:
    return random_adapter(models.source, roles=(Role.Q, Role.V))


@pytest.mark.parametrize("name", NAMES)
class TestCorpusMappers:
    @pytest.mark.parametrize("case", ["role", "target", "layer"])
    def test_adapter_that_does_not_fit_is_refused_by_name(
        self,
        name: str,
        case: str,
        fitted: Callable[[str], CorpusMapper],
        models: ModelPair,
        adapter: LoraAdapter,
        random_adapter: Callable[..., LoraAdapter],
    ) -> None:
        deep = {Site(7, Role.Q): adapter[Site(0, Role.Q)]}
        wrong, message = {
            "role": (
                random_adapter(models.source, roles=(Role.Q, Role.K)),
                r"pico/llama adapts k_proj, .* roles \[q,v\]; .* mapper\.roles=\[q,k\]",
            ),
            "target": (
                random_adapter(models.target, roles=(Role.Q,)),
                r"'pico/target', has shape \(48, 48\) at model\.layers\.0\.self_attn\.q_proj, "
                r"but this mapper's source pico/llama has \(32, 32\)",
            ),
            "layer": (
                replace(adapter, sites=deep),
                r"model\.layers\.7\.self_attn\.q_proj, .* pico/llama has no such module",
            ),
        }[case]
        with pytest.raises(AdapterError, match=message):
            fitted(name).map(wrong)

    def test_a_model_and_itself_give_the_adapter_back(
        self,
        name: str,
        built: Callable[..., CorpusMapper],
        fit_on_text: Callable[..., Path],
        models: ModelPair,
        adapter: LoraAdapter,
    ) -> None:
        mapper = built(name)
        fit_on_text(mapper, ModelPair(models.source, models.source))
        assert relative_error(mapper.map(adapter), adapter) < SAME_MODEL_ERROR[name]

    def test_report_is_of_every_site(
        self,
        name: str,
        fitted: Callable[[str], CorpusMapper],
        models: ModelPair,
        adapter: LoraAdapter,
    ) -> None:
        mapper = fitted(name)
        result = mapper.map(adapter)
        assert list(result) == list(models.target.sites.of_roles((Role.Q, Role.V)))
        report = mapper.report()
        assert list(report["sites"]) == [site.label for site in result]
        assert report["dropped_sites"] == []
        for label, facts in report["sites"].items():
            source = Site.from_label(facts["source"])
            expected = result[Site.from_label(label)].norm() / adapter[source].norm()
            assert facts["kept_norm"] == pytest.approx(expected, rel=1e-4)

    def test_layers_that_feed_nothing_are_reported(
        self,
        name: str,
        built: Callable[..., CorpusMapper],
        fit_on_text: Callable[..., Path],
        models: ModelPair,
        adapter: LoraAdapter,
    ) -> None:
        mapper = built(name)
        fit_on_text(mapper, models, LayerPairing.one_to_one(2, (1, 1, 1)))
        mapper.map(adapter)
        report = mapper.report()
        assert report["dropped_sites"] == ["0.q", "0.v"]
        lost = sum(adapter[Site(0, role)].norm() ** 2 for role in (Role.Q, Role.V))
        assert report["dropped_energy"] == pytest.approx(lost / adapter.norm() ** 2)
        first = {site: adapter[site] for site in adapter if site.layer == 0}
        with pytest.raises(AdapterError, match=r"only layers \[0\], none of which .* layers \[1\]"):
            mapper.map(replace(adapter, sites=first))


@pytest.mark.parametrize("roles", [["z"], []])
def test_unknown_roles_are_refused(roles: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"roles is .*; it takes one or more of q, "):
        TransportMapper(roles=roles)


def test_an_unfitted_checkpoint_is_no_fitted_mapper(tmp_path: Path) -> None:
    mapper = TransportMapper()
    with pytest.raises(RuntimeError, match=r"Mapper has no base models yet: call learn_from\("):
        mapper.models  # noqa: B018
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(mapper)
    trainer.save_checkpoint(tmp_path / "unfitted.ckpt", weights_only=True)
    assert not load_mapper(tmp_path / "unfitted.ckpt").fitted
