"""Planted zoos of two pico models, and mappers trained as their YAML says."""

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from torch import Tensor

from loraport.adapters import AdapterStack, LoraAdapter, LowRank, Role, Site
from loraport.alignment.layer_matching import LayerPairing
from loraport.data import AnchorPairs, AnchorSet, ZooPairs
from loraport.mappers import BasePair, LearnedMapper, load_mapper
from loraport.mappers.contract import composed, paired_layers, random_text, trained
from loraport.mappers.from_text import CorpusMapper, ModelPair
from loraport.models import BaseModel, StreamedWeights
from loraport.models.statistics import StatisticsStore

LATENTS = 3
RANK = 4


def _shapes(layers: int, inputs: int, q: int, v: int) -> dict[Site, tuple[int, int]]:
    outputs = {Role.Q: q, Role.V: v}
    return {Site(i, role): (out, inputs) for i in range(layers) for role, out in outputs.items()}


# Another depth, width and size of q and v on each side.
SHAPES = {"source": _shapes(3, 12, 8, 6), "target": _shapes(2, 14, 10, 5)}


def _side(side: str, latents: Tensor, noise: float) -> dict[str, LoraAdapter]:
    """Updates ``(B_0 + sum_k z_k B_k) A``: linear in the latents z, as are their factors."""
    generator = torch.Generator().manual_seed(["source", "target"].index(side))
    updates: list[dict[Site, LowRank]] = [{} for _ in latents]
    for site, (out, in_) in SHAPES[side].items():
        a = torch.randn(RANK, in_, generator=generator)
        b = torch.randn(1 + LATENTS, out, RANK, generator=generator)
        for place, z in enumerate(latents):
            own = noise * torch.randn(out, RANK, generator=generator)
            mixed = b[0] + torch.einsum("k,kor->or", z, b[1:]) + own
            updates[place][site] = LowRank(a, mixed, 0.5)
    return {f"t{place:02d}": LoraAdapter(u, f"pico/{side}") for place, u in enumerate(updates)}


@pytest.fixture(scope="session")
def planted_zoo() -> Callable[..., ZooPairs]:
    """Make a zoo whose adapters are linear in three latents of a task, on both sides.

    ``noise`` is added to every B; ``unrelated`` gives the target other latents of its own.
    """

    def make(tasks: int = 14, noise: float = 0.0, unrelated: int = 0) -> ZooPairs:
        generator = torch.Generator().manual_seed(7)
        latents = torch.randn(tasks, LATENTS, generator=generator)
        own = latents.clone()
        own[:, :unrelated] = torch.randn(tasks, unrelated, generator=generator)
        return ZooPairs(_side("source", latents, noise), _side("target", own, noise))

    return make


@pytest.fixture(scope="session")
def noisy_zoo(planted_zoo: Callable[..., ZooPairs]) -> ZooPairs:
    """Noise gives variance to every component that a mapper may keep."""
    return planted_zoo(noise=0.1)


@pytest.fixture(scope="session")
def dense() -> Callable[[AdapterStack, Site], Tensor]:
    """Return the flattened updates of a site, one adapter a row, in float64."""

    def rows(stack: AdapterStack, site: Site) -> Tensor:
        return (stack[site].B.double() @ stack[site].A.double()).flatten(1)

    return rows


@pytest.fixture(scope="session")
def assert_best() -> Callable[[LowRank, Any], None]:
    """Require an update to be a flat matrix cut to the anchors' rank, by numpy's SVD."""

    def check(found: LowRank, flat: Any) -> None:
        u, sigma, vt = np.linalg.svd(np.reshape(flat, found.shape), full_matrices=False)
        best = (u[:, :RANK] * sigma[:RANK]) @ vt[:RANK]
        np.testing.assert_allclose(found.dense().numpy(), best, atol=1e-5)

    return check


@pytest.fixture(scope="session")
def anchors(noisy_zoo: ZooPairs) -> AnchorSet:
    """All tasks of the noisy zoo but the first."""
    return AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1:])


@pytest.fixture(scope="session")
def regauged() -> Callable[[LoraAdapter, int], LoraAdapter]:
    """Return the same updates with factors ``G A`` and ``B G^-1``, G drawn for each site."""

    def change(adapter: LoraAdapter, seed: int) -> LoraAdapter:
        generator = torch.Generator().manual_seed(seed)

        def turned(update: LowRank) -> LowRank:
            r = update.rank
            left = torch.linalg.qr(torch.randn(r, r, generator=generator)).Q
            right = torch.linalg.qr(torch.randn(r, r, generator=generator)).Q
            gauge = (left @ torch.linspace(0.5, 2, r).diag() @ right).double()
            a, b = gauge @ update.A.double(), update.B.double() @ torch.linalg.inv(gauge)
            return LowRank(a, b, update.scale).to(torch.float32)

        return adapter.map(turned)

    return change


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., StreamedWeights]:
    """Save a base model, or another network with its tokenizer, and open its weights."""

    def make(base: BaseModel, network: Any = None) -> StreamedWeights:
        folder = tmp_path_factory.mktemp("base")
        (network or base.network).save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        return StreamedWeights.open(folder, base.name)

    return make


@pytest.fixture(scope="session")
def models(pico: Callable[[str], BaseModel], pico_target: BaseModel) -> ModelPair:
    """Llama of width 32 to Gemma of width 48, other depth, heads and head width, one tokenizer."""
    return ModelPair(pico("llama"), pico_target)


@pytest.fixture(scope="session")
def pico_pair(models: ModelPair, opened: Callable[..., StreamedWeights]) -> BasePair:
    """The same models on disk."""
    return BasePair(opened(models.source), opened(models.target))


@pytest.fixture(scope="session")
def adapter(random_adapter: Callable[..., LoraAdapter], models: ModelPair) -> LoraAdapter:
    """An adapter of q and v for the source of ``models``."""
    return random_adapter(models.source, roles=(Role.Q, Role.V))


@pytest.fixture(scope="session")
def adapter_of() -> Callable[..., LoraAdapter]:
    """Draw an adapter for the modules of a model on disk."""

    def make(
        weights: StreamedWeights, roles: tuple[Role, ...] = tuple(Role), rank: int = 3
    ) -> LoraAdapter:
        generator = torch.Generator().manual_seed(1)
        updates = {}
        for site in weights.sites.of_roles(roles):
            out, width = weights.sites.shapes[site]
            a = torch.randn(rank, width, generator=generator)
            updates[site] = LowRank(a, torch.randn(out, rank, generator=generator), 0.5)
        return LoraAdapter(updates, weights.name)

    return make


@pytest.fixture(scope="session")
def pico_adapter(pico_pair: BasePair, adapter_of: Callable[..., LoraAdapter]) -> LoraAdapter:
    """An adapter of all seven roles for the source of ``pico_pair``."""
    return adapter_of(pico_pair.source)


@pytest.fixture(autouse=True)
def _as_deterministic_as_before() -> Iterator[None]:
    """A trainer that is deterministic makes torch so for the whole process."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def recipe() -> Callable[..., Any]:
    """Compose the configuration of ``train.py`` with a mapper; overrides are plain keys."""

    def make(mapper: str, *overrides: str) -> Any:
        config = OmegaConf.create(OmegaConf.to_container(composed(mapper)))
        for override in overrides:
            key, _, value = override.partition("=")
            assert OmegaConf.select(config, key) is not None
            OmegaConf.update(config, key, yaml.safe_load(value))
        return config

    return make


@pytest.fixture(scope="session")
def train(
    recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., LearnedMapper]:
    """Train a mapper as its YAML says; return what ``train.py`` would go on with."""

    def run(mapper: str, zoo: ZooPairs, held_out: list[str], *overrides: str) -> LearnedMapper:
        config = recipe(mapper, *overrides)
        folder = tmp_path_factory.mktemp("trained")
        data: AnchorPairs = instantiate(config.data, _partial_=True)(zoo=zoo, held_out=held_out)
        callbacks = [
            instantiate(node, **({"dirpath": str(folder)} if "dirpath" in node else {}))
            for name, node in config.callbacks.items()
            if name != "progress"
        ]
        trainer = instantiate(
            config.trainer, logger=False, default_root_dir=folder, _partial_=True
        )(callbacks=callbacks)
        last: LearnedMapper = instantiate(config.mapper)
        trainer.fit(last, datamodule=data)
        best = [c.best_model_path for c in callbacks if isinstance(c, ModelCheckpoint)]
        return load_mapper(best[0]) if best else last

    return run


@pytest.fixture(scope="session")
def fit_on_text(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a mapper on random text, as its caller says, and return its checkpoint."""

    def fit(
        mapper: CorpusMapper,
        models: ModelPair,
        pairing: LayerPairing | None = None,
        store: StatisticsStore | None = None,
        tokens: int = 1500,
        max_epochs: int = 1,
        precision: str = "32-true",
    ) -> Path:
        folder = Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))
        mapper.learn_from(models, pairing or paired_layers(models), store)
        data = mapper.data_module(random_text(models, tokens), folder)
        options: Any = {"max_epochs": max_epochs, "precision": precision}
        return trained(mapper, data, folder / "mapper.ckpt", **options)

    return fit


@pytest.fixture(scope="session")
def fitted_on_text(
    recipe: Callable[..., Any], fit_on_text: Callable[..., Path], models: ModelPair
) -> Callable[[str], tuple[Any, Path]]:
    """Fit a mapper as its YAML says, once; return it with its checkpoint."""

    @cache
    def fit(name: str) -> tuple[Any, Path]:
        mapper: Any = instantiate(recipe(name).mapper)
        return mapper, fit_on_text(mapper, models)

    return fit


@pytest.fixture(scope="session")
def twisted(pico: Callable[[str], BaseModel]) -> Callable[[Tensor], ModelPair]:
    """Pair a llama with itself in another basis: its residual stream turned by an orthogonal Q.

    Norms of all gains 1 commute with Q, so that in row convention ``x_T = x_S Q`` at every module
    that reads the stream, while what q, k and v write is the same.
    """

    def make(turn: Tensor) -> ModelPair:
        source, target = pico("llama"), pico("llama")
        weights = dict(target.network.named_parameters())
        for name, weight in weights.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.data = turn.mT @ weight.data
            elif weight.ndim == 2:
                weight.data = weight.data @ turn
        return ModelPair(source, target)

    return make
