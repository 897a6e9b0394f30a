import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.alignment.linear_maps import SplitMoments
from loraport.alignment.moments import PairedMoments
from loraport.exceptions import ConfigurationError
from loraport.mappers import load_mapper
from loraport.mappers.from_text import ModelPair
from loraport.mappers.transport import AdjointTransportMapper, RopeBlocks, TransportMapper
from loraport.models.architectures import HeadShape
from loraport.models.capture import readings
from loraport.models.statistics import StatisticsStore

Fit = Callable[..., Path]
Fitted = Callable[[str], tuple[Any, Path]]
Draw = Callable[..., LoraAdapter]
Twist = Callable[[torch.Tensor], ModelPair]

FITTING = "loraport.mappers.linear_text"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the batches that the models run on, both models of a batch apart."""
    runs: list[int] = []

    def counting(*arguments: Any) -> Any:
        runs.append(1)
        return readings(*arguments)

    monkeypatch.setattr(f"{FITTING}.readings", counting)
    return runs


def test_rope_blocks_keep_pairs_of_dimensions_apart(
    models: ModelPair, fit_on_text: Fit, random_adapter: Draw
) -> None:
    mapper = TransportMapper(roles=["q", "k", "v"], rope_blocks=True)
    plain = TransportMapper(roles=["q", "k", "v"])
    for one in (mapper, plain):
        fit_on_text(one, models, tokens=600)
    for (source, target), out in mapper.maps.outputs.items():
        same = torch.equal(out.matrix, plain.maps.outputs[source, target].matrix)
        assert same == (source.role is Role.V)
        if source.role is not Role.V:
            assert out.strength is None
            # Two entries a row: a pair reads one pair.
            assert (out.matrix != 0).sum(dim=1).tolist() == [2] * len(out.matrix)
    for pair, into in mapper.maps.inputs.items():
        assert torch.equal(into.matrix, plain.maps.inputs[pair].matrix)
    adapter = random_adapter(models.source, roles=(Role.Q, Role.K, Role.V))
    assert mapper.map(adapter).norm() > 0


@pytest.mark.parametrize("name", ["transport", "adjoint_transport"])
def test_blocks_of_layers_give_the_maps_of_one_epoch(
    name: str,
    fitted_on_text: Fitted,
    models: ModelPair,
    adapter: LoraAdapter,
    fit_on_text: Fit,
    counted: list[int],
) -> None:
    whole, _ = fitted_on_text(name)
    counted.clear()
    fit_on_text(type(whole)(), models)
    once = len(counted)
    blocks = type(whole)(memory_gb=1e-6)
    fit_on_text(blocks, models, max_epochs=7)
    assert len(counted) == once + 3 * once
    error = relative_error(blocks.map(adapter), whole.map(adapter))
    assert error < (1e-5 if name == "transport" else 1e-4)


def test_finished_statistics_are_not_gathered_again(
    models: ModelPair, adapter: LoraAdapter, fit_on_text: Fit, counted: list[int], tmp_path: Path
) -> None:
    store, mappers = StatisticsStore(tmp_path), [TransportMapper() for _ in range(2)]
    fit_on_text(mappers[0], models, store=store)
    once = len(counted)
    fit_on_text(mappers[1], models, store=store)
    fit_on_text(TransportMapper(strengths=[1.0]), models, store=store)
    assert len(counted) == once
    assert mappers[1].map(adapter).content_hash() == mappers[0].map(adapter).content_hash()
    # Another text has statistics of its own, and so have the gradients.
    fit_on_text(TransportMapper(), models, store=store, tokens=1000)
    assert len(counted) > once
    fit_on_text(AdjointTransportMapper(), models, store=store)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


@pytest.mark.parametrize("stop", [3, 7])
def test_stopped_fit_goes_on_and_ends_in_the_same_bits(
    stop: int,
    fitted_on_text: Fitted,
    models: ModelPair,
    adapter: LoraAdapter,
    fit_on_text: Fit,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """In its second batch of training text, or in held-out text."""
    whole, _ = fitted_on_text("transport")
    runs: list[int] = []

    def failing(*arguments: Any) -> Any:
        runs.append(1)
        if len(runs) == stop:
            raise KeyboardInterrupt
        return readings(*arguments)

    monkeypatch.setattr(f"{FITTING}.readings", failing)
    store = StatisticsStore(tmp_path, seconds=0.0)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit_on_text(TransportMapper(), models, store=store)
    mapper = TransportMapper()
    fit_on_text(mapper, models, store=store)
    assert mapper.map(adapter).content_hash() == whole.map(adapter).content_hash()
    total = len(runs)
    fit_on_text(TransportMapper(), models)
    # Of the stopped batch alone both models may have to run again.
    assert total - stop < len(runs) - total <= total


def test_partly_fitted_checkpoint_is_no_fitted_mapper(fitted_on_text: Fitted) -> None:
    _, checkpoint = fitted_on_text("transport")
    mapper: Any = load_mapper(checkpoint)
    assert mapper.fitted
    mapper.maps.outputs.pop((Site(0, Role.V), Site(0, Role.V)))
    assert not mapper.fitted
    saved: dict[str, Any] = {}
    mapper.on_save_checkpoint(saved)
    fresh = TransportMapper()
    fresh.on_load_checkpoint(saved)
    assert not fresh.fitted
    assert fresh.maps.outputs.keys() == mapper.maps.outputs.keys()


@pytest.mark.slow
def test_two_devices_fit_what_one_fits(
    models: ModelPair, adapter: LoraAdapter, tmp_path: Path
) -> None:
    for side, model in (("source", models.source), ("target", models.target)):
        model.network.save_pretrained(tmp_path / side)
        model.tokenizer.save_pretrained(tmp_path / side)
    script = Path(__file__).with_name("ddp_text_fit.py")
    one, two = tmp_path / "one.ckpt", tmp_path / "two.ckpt"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(two), "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "MEMBER: 2/2" in done.stderr
    runpy.run_path(str(script))["main"](str(tmp_path), str(one), "1")
    expected = load_mapper(one).map(adapter)
    assert relative_error(load_mapper(two).map(adapter), expected) < 1e-4


def carried_back(mapper: AdjointTransportMapper) -> list[float]:
    """The R^2 of the gradients, a site each."""
    found = [out.gradient_r2 for out in mapper.maps.outputs.values()]
    assert None not in found
    return [r2 for r2 in found if r2 is not None]


@pytest.mark.parametrize("kind", [TransportMapper, AdjointTransportMapper])
def test_planted_change_of_basis_is_recovered(
    kind: type[TransportMapper] | type[AdjointTransportMapper],
    twisted: Twist,
    fit_on_text: Fit,
    random_adapter: Draw,
) -> None:
    generator = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    pair = twisted(turn)
    mapper = kind(strengths=[1e-9])
    fit_on_text(mapper, pair)
    given = random_adapter(pair.source, roles=(Role.Q, Role.V))
    # x_T = x_S Q in row convention, so that A_T = A_S Q; outputs and their effects are the same.
    expected = given.map(lambda u: LowRank(u.A @ turn, u.B, u.scale))
    assert relative_error(mapper.map(given), expected) < 1e-4
    wrong = given.map(lambda u: LowRank(u.A @ turn.mT, u.B, u.scale))
    assert relative_error(mapper.map(given), wrong) > 1
    if isinstance(mapper, AdjointTransportMapper):
        assert carried_back(mapper) == pytest.approx([1.0] * 4, abs=1e-5)


def test_what_is_written_comes_back_where_outputs_do_not_vary(
    twisted: Twist, fit_on_text: Fit, random_adapter: Draw
) -> None:
    pair = twisted(torch.eye(32))
    site, plain = Site(0, Role.V), TransportMapper(roles=["v"], strengths=[1e-6])
    weights: list[Any] = [
        model.network.get_submodule(site.module_name) for model in (pair.source, pair.target)
    ]
    for module in weights:  # half of what v writes is always zero, but would not be without effect
        module.weight.data[::2] = 0
    given = random_adapter(pair.source, roles=(Role.V,))
    mapper = AdjointTransportMapper(roles=["v"], strengths=[1e-6])
    errors = {}
    for one in (plain, mapper):
        fit_on_text(one, pair)
        errors[one] = float((one.map(given)[site].B - given[site].B).norm() / given[site].B.norm())
    assert errors[mapper] < 1e-2
    assert errors[plain] > 0.5


def test_without_behaviour_it_is_transport(
    fitted_on_text: Fitted, models: ModelPair, adapter: LoraAdapter, fit_on_text: Fit
) -> None:
    plain, both = (fitted_on_text(name)[0] for name in ("transport", "adjoint_transport"))
    alone = AdjointTransportMapper(behaviour=0.0)
    fit_on_text(alone, models)
    assert relative_error(alone.map(adapter), plain.map(adapter)) < 1e-3
    assert relative_error(both.map(adapter), plain.map(adapter)) > 0.01
    for pair, into in both.maps.inputs.items():
        torch.testing.assert_close(into.matrix, plain.maps.inputs[pair].matrix)
    assert sum(carried_back(both)) > sum(carried_back(alone))


def test_report_says_how_well_gradients_come_back(
    fitted_on_text: Fitted, adapter: LoraAdapter
) -> None:
    mapper, checkpoint = fitted_on_text("adjoint_transport")
    loaded: Any = load_mapper(checkpoint)
    assert carried_back(loaded) == carried_back(mapper)
    assert loaded.two_sided == mapper.two_sided
    for one, told in ((loaded, True), (fitted_on_text("transport")[0], False)):
        one.map(adapter)
        report = one.report()
        fits = [fit for found in report["fits"].values() for fit in found.values()]
        assert all(("gradient_r2" in fit) == told for fit in fits)
        assert all(("gradient_r2" in site) == told for site in report["sites"].values())
    first = mapper.maps.outputs[Site(0, Role.Q), Site(0, Role.Q)]
    assert loaded.report()["sites"]["0.q"]["gradient_r2"] == first.gradient_r2


@pytest.mark.parametrize("behaviour", [-0.1, float("inf")])
def test_impossible_weight_is_refused(behaviour: float) -> None:
    with pytest.raises(ConfigurationError, match=r"mapper\.behaviour is .*; it takes a finite"):
        AdjointTransportMapper(behaviour=behaviour)


SHAPE = HeadShape(groups=2, heads=2, dims=8)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def split(x: Tensor, y: Tensor) -> SplitMoments:
    return SplitMoments(PairedMoments.of(x[:300], y[:300]), PairedMoments.of(x[300:], y[300:]))


def turned(x: Tensor, heads: list[int], pairs: list[int], dims: int, seed: int) -> Tensor:
    """Every target head is a source head whose pairs are scaled and rotated."""
    z = x.unflatten(1, (-1, 2, dims // 2))
    z = torch.complex(z[:, :, 0], z[:, :, 1])[:, heads][:, :, pairs]
    w = z * torch.complex(*drawn(2, len(heads), len(pairs), seed=seed))
    return torch.stack([w.real, w.imag], dim=2).flatten(1)


def test_planted_heads_and_rotations_are_recovered() -> None:
    q, k = drawn(400, 32), drawn(400, 16, seed=1)
    pairs = [0, 1, 2, 3]
    # The two groups change places, and the heads of one of them too.
    q_heads, k_heads = [3, 2, 0, 1], [1, 0]
    targets = {Role.Q: turned(q, q_heads, pairs, 8, 5), Role.K: turned(k, k_heads, pairs, 8, 6)}
    moments = {Role.Q: split(q, targets[Role.Q]), Role.K: split(k, targets[Role.K])}
    blocks = RopeBlocks(SHAPE, SHAPE, torch.tensor(pairs))
    for role, x in ((Role.Q, q), (Role.K, k)):
        found = blocks.fit(role, moments)
        assert torch.allclose(x @ found.matrix.mT, targets[role], atol=1e-8)
        assert found.error.r2 == pytest.approx(1)
        alone = blocks.fit(role, {role: moments[role]})
        assert torch.allclose(alone.matrix, found.matrix)


def test_map_commutes_with_rotary_embeddings() -> None:
    x, y = drawn(400, 16), drawn(400, 24, seed=1) + drawn(400, 16, seed=0) @ drawn(16, 24, seed=2)
    source, target = HeadShape(1, 2, 8), HeadShape(1, 2, 12)
    frequencies = torch.tensor([1.0, 0.5, 0.2, 0.1])
    pairs = torch.tensor([0, 0, 1, 2, 2, 3])
    matrix = RopeBlocks(source, target, pairs).fit(Role.Q, {Role.Q: split(x, y)}).matrix

    def turn(rows: Tensor, dims: int, by: Tensor) -> Tensor:
        z = rows.unflatten(1, (-1, 2, dims // 2))
        w = torch.complex(z[:, :, 0], z[:, :, 1]) * torch.polar(torch.ones_like(by), 7 * by)
        return torch.stack([w.real, w.imag], dim=2).flatten(1)

    before = turn(x, 8, frequencies.double()) @ matrix.mT
    after = turn(x @ matrix.mT, 12, frequencies[pairs].double())
    assert torch.allclose(before, after, atol=1e-9)
    assert float(matrix.norm()) > 0.1


def test_each_block_is_the_least_squares_one() -> None:
    x, y = drawn(400, 2), drawn(400, 2, seed=1) + 0.5 * drawn(400, 2).flip(1)
    one = HeadShape(1, 1, 2)
    matrix = RopeBlocks(one, one, torch.tensor([0])).fit(Role.K, {Role.K: split(x, y)}).matrix
    a, b = float(matrix[0, 0]), float(matrix[1, 0])
    assert matrix.tolist() == [[a, -b], [b, a]]
    # |y - (aI + bJ) x|^2 is least squares on the two columns x and Jx.
    columns = torch.stack([x[:300].flatten(), torch.stack([-x[:300, 1], x[:300, 0]], 1).flatten()])
    expected = torch.linalg.lstsq(columns.mT, y[:300].flatten()).solution
    assert torch.allclose(torch.tensor([a, b]).double(), expected)


def test_heads_that_never_vary_give_zero() -> None:
    x, y = torch.zeros(400, 16), drawn(400, 16)
    blocks = RopeBlocks(SHAPE, SHAPE, torch.arange(4))
    assert not blocks.fit(Role.K, {Role.K: split(x, y)}).matrix.any()
