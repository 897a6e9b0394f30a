"""What holds for every mapper, as tests that a mapper of one's own inherits.

A test file beside the mapper's class and its YAML, ``mapper/mine.yaml``, is enough::

    from pathlib import Path
    from loraport.mappers.contract import MapperContract

    class TestMine(MapperContract):
        mapper = "mine"
        config_dir = Path(__file__).parent

``python -m pytest FILE`` then builds the mapper by its YAML, fits it on two small random models, on
random adapters of both or on random text, whatever it declares to learn from, and asks everything
below. It needs pytest. docs/extending.md has a whole example.
"""

import json
import random
import string
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from hydra import compose, initialize_config_module
from lightning import LightningDataModule, Trainer
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM

from ..adapters import LoraAdapter, LowRank, Role, relative_error
from ..alignment import relative_depth
from ..alignment.layer_matching import LayerPairing
from ..component import Component
from ..data import AllEnds, TextCorpus, ZooPairs
from ..exceptions import AdapterError
from ..models import BaseModel, StreamedWeights
from ..tiny.models import byte_pairs
from .base import BasePair, LearnedMapper, Mapper, load_mapper
from .from_text import CorpusMapper, ModelPair

HELD_OUT = "task00"
ROLES = (Role.Q, Role.V)
_SOURCE: dict[str, Any] = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
_TARGET: dict[str, Any] = _SOURCE | {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "head_dim": 12,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 16,
}


class MapperContract:
    """Tests of a mapper; a subclass names it, and may add tests of its own.

    Attributes:
        mapper: The name of the mapper's YAML.
        config_dir: The folder that has it as ``mapper/NAME.yaml``; None for loraport's own.
        overrides: Options, such as ``mapper.rank=4``, beside those of the YAML.
    """

    mapper: ClassVar[str]
    config_dir: ClassVar[Path | None] = None
    overrides: ClassVar[tuple[str, ...]] = ()

    def config(self) -> Any:
        """Return what ``train.py mapper=NAME`` reads."""
        return composed(self.mapper, self.config_dir, self.overrides)

    def build(self) -> Mapper:
        """Return a new mapper, as its YAML says."""
        node = OmegaConf.to_container(self.config().mapper, resolve=True)
        built: Mapper = Component.model_validate(node).build()
        return built

    def ready(self) -> Mapper:
        """Return the mapper, fitted and with the base models; the same one for every test."""
        return self._ready()[0]

    @classmethod
    @cache
    def _ready(cls) -> tuple[Mapper, Path | None]:
        return cls()._fitted()

    def _fitted(self) -> tuple[Mapper, Path | None]:
        """Build a mapper, fit it where it learns, and give it the base models."""
        built, checkpoint = self.build(), None
        if isinstance(built, LearnedMapper):
            folder = Path(tempfile.mkdtemp(dir=_folder().name))
            if isinstance(built, CorpusMapper):
                models = contract_pair().models
                built.learn_from(models, paired_layers(models))
                data = built.data_module(random_text(models), folder)
            else:
                node = OmegaConf.to_container(self.config().data, resolve=True)
                zoo = contract_pair().zoo
                data = Component.model_validate(node).build(zoo=zoo, held_out=[HELD_OUT])
            checkpoint = trained(built, data, folder / "mapper.ckpt", max_epochs=2)
        built.use(contract_pair().weights)
        return built, checkpoint

    def test_name_is_that_of_the_yaml(self) -> None:
        """Reports say the name, and users choose by it."""
        assert self.build().name == self.mapper

    def test_what_it_learns_from_agrees_with_its_class(self) -> None:
        """A mapper with training is a LearnedMapper, and its data access names what it sees."""
        mapper = self.build()
        assert isinstance(mapper, LearnedMapper) == (mapper.learns_from is not None)
        expected = {None: "weights only", "text": "generic text", "anchors": "anchors"}
        assert mapper.data_access == expected[mapper.learns_from]

    def test_result_is_an_adapter_of_the_target(self) -> None:
        """Every site is a module of the target, of its shape; only a no-op may be zero."""
        mapper, pair = self.ready(), contract_pair()
        result = mapper.map(pair.adapter)
        assert result.base_model == pair.models.target.name
        shapes = pair.models.target.sites.shapes
        assert {site.role for site in result} <= set(ROLES)
        for site, update in result.items():
            assert update.shape == shapes[site]
            assert torch.isfinite(update.dense()).all()
            assert (update.norm() > 0) == mapper.acts

    def test_gauge_of_the_factors_matters_only_where_it_is_declared(self) -> None:
        """``B G^-1`` and ``G A`` are the same update."""
        mapper, adapter = self.ready(), contract_pair().adapter
        if mapper.gauge_dependent or not mapper.acts:
            return
        assert relative_error(mapper.map(_regauged(adapter)), mapper.map(adapter)) < 1e-4

    def test_multiples_are_mapped_to_multiples_where_it_is_declared(self) -> None:
        """-2 times an update becomes -2 times the result."""
        mapper, adapter = self.ready(), contract_pair().adapter
        if not mapper.is_linear or not mapper.acts:
            return
        doubled = mapper.map(adapter.map(lambda update: update.scaled(-2.0)))
        expected = mapper.map(adapter).map(lambda update: update.scaled(-2.0))
        assert relative_error(doubled, expected) < 1e-5

    def test_fitting_and_mapping_again_gives_the_same_bits(self) -> None:
        """No result depends on a global generator, or on what was mapped before."""
        adapter = contract_pair().adapter
        before = adapter.content_hash()
        again, _ = self._fitted()
        hashes = {mapper.map(adapter).content_hash() for mapper in (self.ready(), again, again)}
        assert len(hashes) == 1
        assert adapter.content_hash() == before

    def test_checkpoint_gives_the_same_bits(self) -> None:
        """A learned mapper is rebuilt from its checkpoint alone, which holds plain data."""
        mapper, checkpoint = self._ready()
        if checkpoint is None:
            return
        torch.load(checkpoint, weights_only=True)
        loaded, adapter = load_mapper(checkpoint), contract_pair().adapter
        assert type(loaded) is type(mapper)
        assert loaded.options == mapper.options
        assert loaded.map(adapter).content_hash() == mapper.map(adapter).content_hash()
        assert loaded.report() == mapper.report()

    def test_report_is_plain_data(self) -> None:
        """results.json and report.json hold it."""
        mapper = self.ready()
        mapper.map(contract_pair().adapter)
        json.dumps(mapper.report())

    def test_adapter_of_another_model_is_refused(self) -> None:
        """Instead of a result of wrong shapes, or an error of torch."""
        with pytest.raises(AdapterError):
            self.ready().map(contract_pair().zoo.target[HELD_OUT])

    def test_without_what_it_needs_it_says_so(self) -> None:
        """Neither fitted nor given the base models, it cannot map."""
        mapper = self.build()
        if isinstance(mapper, LearnedMapper):
            assert not mapper.fitted
        with pytest.raises(RuntimeError, match=type(mapper).__name__):
            mapper.map(contract_pair().adapter)


@cache
def composed(mapper: str, folder: Path | None = None, overrides: tuple[str, ...] = ()) -> Any:
    """Compose what ``train.py mapper=NAME`` reads, with a folder of further YAMLs."""
    search = [f"hydra.searchpath=[file://{folder.resolve()}]"] if folder else []
    with initialize_config_module("loraport.conf", version_base=None):
        return compose("train", overrides=[f"mapper={mapper}", *overrides, *search])


class Pair(NamedTuple):
    """Two random base models of different families, depths and widths, and what relates them.

    Attributes:
        models: The models in memory.
        weights: The same on disk.
        zoo: Random adapters of q and v for both, of the same tasks.
        adapter: The source's adapter of the held-out task.
    """

    models: ModelPair
    weights: BasePair
    zoo: ZooPairs
    adapter: LoraAdapter


@cache
def contract_pair() -> Pair:
    """Return the pair that every mapper is tested on, made once a process."""
    models, weights, adapters = [], [], []
    for seed, (side, family, shape) in enumerate(
        (("source", "llama", _SOURCE), ("target", "gemma3_text", _TARGET)), start=1
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = AutoConfig.for_model(family, **shape)
            network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model = BaseModel.frozen(f"contract/{side}", network, byte_pairs([], 262), side)
        folder = Path(_folder().name) / side
        model.network.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        models.append(model)
        weights.append(StreamedWeights.open(folder, model.name))
        adapters.append({f"task{n:02d}": _random_adapter(model, n) for n in range(12)})
    zoo = ZooPairs(*adapters)
    return Pair(ModelPair(*models), BasePair(weights[0], weights[1]), zoo, zoo.source[HELD_OUT])


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="loraport-contract-")


def _random_adapter(model: BaseModel, seed: int) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for site in model.sites.of_roles(ROLES):
        out, width = model.sites.shapes[site]
        a = torch.randn(3, width, generator=generator) / width**0.5
        updates[site] = LowRank(a, torch.randn(out, 3, generator=generator), 0.5)
    return LoraAdapter(updates, model.name)


def _regauged(adapter: LoraAdapter) -> LoraAdapter:
    gauge = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, -1.0], [1.0, 0.0, 3.0]], dtype=torch.float64)

    def changed(update: LowRank) -> LowRank:
        a, b = gauge @ update.A.double(), update.B.double() @ torch.linalg.inv(gauge)
        return LowRank(a, b, update.scale).to(torch.float32)

    return adapter.map(changed)


class Letters:
    """Random printable characters: more different tokens than a small model is wide."""

    def texts(self, split: str) -> Iterator[str]:
        """Yield 200 texts of 48 characters, the same ones for the same split."""
        draw = random.Random(split)
        for _ in range(200):
            yield "".join(draw.choices(string.ascii_letters + string.digits + " ,.!?", k=48))


def random_text(
    models: ModelPair, tokens: int = 1500, held_out_tokens: int = 400, batch_tokens: int = 512
) -> TextCorpus:
    """Return random text as a mapper of these models learns from it."""
    return TextCorpus(
        Letters(),
        models.source.tokenizer,
        models.target.tokenizer,
        tokens=tokens,
        held_out_tokens=held_out_tokens,
        batch_tokens=batch_tokens,
        ends=AllEnds(),
    )


def paired_layers(models: ModelPair) -> LayerPairing:
    """Return the pairing of two models' layers by relative depth."""
    source, target = models.source.sites.layers, models.target.sites.layers
    return LayerPairing.one_to_one(source, relative_depth(source, target))


def trained(
    mapper: LearnedMapper,
    data: LightningDataModule,
    checkpoint: Path,
    resume: Path | None = None,
    **options: Any,
) -> Path:
    """Fit a mapper on the CPU, without a word, and return its checkpoint.

    Args:
        mapper: The mapper.
        data: What it learns from.
        checkpoint: Where to write it.
        resume: A checkpoint to go on from.
        options: Of the trainer, such as ``max_epochs``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers and optimisers
        trainer = Trainer(
            accelerator="cpu",
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(mapper, datamodule=data, ckpt_path=resume)
        trainer.save_checkpoint(checkpoint, weights_only=True)
    return checkpoint
