from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraport.adapters import LoraAdapter, Role, Site
from loraport.exceptions import ConfigurationError, ModelError
from loraport.mappers import BasePair
from loraport.mappers.embedding_ridge import EmbeddingRidgeMapper
from loraport.models import BaseModel, attached
from loraport.models.weights import StreamedWeights

TINY = [1e-9]
Opened = Callable[[BaseModel], StreamedWeights]


@pytest.fixture(scope="module")
def llama(pico: Callable[[str], BaseModel]) -> BaseModel:
    """Of width 32, with bytes as tokens: 256 strings to compare."""
    return pico("llama")


@pytest.fixture(scope="module")
def same(llama: BaseModel, opened: Opened) -> BasePair:
    """A model as its own target."""
    weights = opened(llama)
    return BasePair(weights, weights)


@pytest.fixture(scope="module")
def other(llama: BaseModel, pico_target: BaseModel, opened: Opened) -> BasePair:
    """A llama of 2 layers and width 32, and a gemma3 of 3 layers and width 48."""
    return BasePair(opened(llama), opened(pico_target))


def mapper(pair: BasePair, **options: object) -> EmbeddingRidgeMapper:
    made = EmbeddingRidgeMapper(**options)  # type: ignore[arg-type]
    made.use(pair)
    return made


def projector(columns: Tensor) -> Tensor:
    q, _ = torch.linalg.qr(columns)
    return q @ q.mT


@pytest.fixture(scope="module")
def ported(
    same: BasePair, llama: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> tuple[LoraAdapter, LoraAdapter]:
    """An adapter of the model, and what it becomes on the way to the same model."""
    adapter = random_adapter(llama)
    return adapter, mapper(same, strengths=TINY).map(adapter)


class TestSameModel:
    """With more tokens than dimensions and a weak penalty: the update on what tokens can reach."""

    @pytest.mark.parametrize("role", [Role.Q, Role.K, Role.V, Role.DOWN])
    def test_the_update_comes_back_where_tokens_reach_everything(
        self, ported: tuple[LoraAdapter, LoraAdapter], role: Role
    ) -> None:
        before, after = (adapter[Site(1, role)].dense() for adapter in ported)
        assert float((after - before).norm() / before.norm()) < 1e-3

    @pytest.mark.parametrize("role", [Role.GATE, Role.UP])
    def test_outputs_beyond_the_width_of_the_input_are_lost(
        self, ported: tuple[LoraAdapter, LoraAdapter], llama: BaseModel, role: Role
    ) -> None:
        site = Site(1, role)
        before, after = (adapter[site].dense() for adapter in ported)
        expected = projector(llama.network.get_parameter(f"{site.module_name}.weight")) @ before
        assert float((after - expected).norm() / before.norm()) < 1e-3
        assert float((expected - before).norm() / before.norm()) > 0.1

    def test_of_o_the_mean_over_the_heads_that_share_values_is_left(
        self, ported: tuple[LoraAdapter, LoraAdapter], llama: BaseModel
    ) -> None:
        site = Site(1, Role.O)
        before, after = (adapter[site].dense() for adapter in ported)
        # Two of four query heads, each 8 wide, share each of two key-value heads.
        mean = torch.kron(torch.kron(torch.eye(2), torch.full((2, 2), 0.5)), torch.eye(8))
        repeat = torch.kron(torch.kron(torch.eye(2), torch.ones(2, 1)), torch.eye(8))
        weight = llama.network.get_parameter(f"{site.module_name}.weight")
        expected = projector(weight @ repeat) @ before @ mean
        assert float((after - expected).norm() / before.norm()) < 1e-3

    def test_the_report_says_that_held_out_tokens_are_predicted(
        self, same: BasePair, llama: BaseModel, random_adapter: Callable[..., LoraAdapter]
    ) -> None:
        made = mapper(same)
        made.map(random_adapter(llama))
        report = made.report()
        assert report["tokens"] == 256
        for facts in report["sites"].values():
            assert facts["input_r2"] > 0.999
            assert facts["output_r2"] > 0.999
            assert facts["input_strength"] == facts["output_strength"] == 1e-4


def rotated(base: BaseModel, turn: Tensor) -> BaseModel:
    """The same model in another basis of the residual: its norms' gains are all 1."""
    network = base.network
    for name, parameter in network.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            parameter.copy_(turn.mT @ parameter)
        elif "norm" not in name:
            parameter.copy_(parameter @ turn)
    return BaseModel.frozen("pico/rotated", network, base.tokenizer, "target")


def test_a_rotation_of_the_residual_is_followed(
    llama: BaseModel,
    pico: Callable[[str], BaseModel],
    opened: Opened,
    random_adapter: Callable[..., LoraAdapter],
) -> None:
    draw = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    target = rotated(pico("llama"), torch.linalg.qr(draw)[0])
    adapter = random_adapter(llama, roles=(Role.Q, Role.K, Role.V, Role.DOWN))
    ported = mapper(BasePair(opened(llama), opened(target)), strengths=TINY).map(adapter)
    ids = torch.arange(2, 40).view(2, -1)
    logits = []
    for base, update in ((llama, adapter), (target, ported)):
        with torch.inference_mode(), attached(base.network, update):
            logits.append(base.network(input_ids=ids).logits)
    with torch.inference_mode():
        plain = llama.network(input_ids=ids).logits
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=2e-3)
    assert float((logits[0] - plain).abs().max()) > 0.1


def test_constant_outputs_do_not_matter_to_what_is_written(
    pico: Callable[[str], BaseModel],
    opened: Opened,
    random_adapter: Callable[..., LoraAdapter],
) -> None:
    # An update acts on changes: models that differ in their biases alone take the same one.
    source, target = pico("qwen2"), pico("qwen2")
    for layer in range(2):
        target.network.get_parameter(f"{Site(layer, Role.K).module_name}.bias").add_(5)
    adapter = random_adapter(source, roles=(Role.K,))
    ported = mapper(BasePair(opened(source), opened(target)), strengths=TINY).map(adapter)
    for site, update in adapter.items():
        error = (ported[site].dense() - update.dense()).norm() / update.norm()
        assert float(error) < 1e-3


@pytest.mark.parametrize("roles", [tuple(Role), (Role.Q, Role.V), (Role.DOWN,)])
@pytest.mark.parametrize("back", [False, True])
def test_other_widths_depths_and_head_counts(
    roles: tuple[Role, ...],
    back: bool,
    other: BasePair,
    llama: BaseModel,
    pico_target: BaseModel,
    random_adapter: Callable[..., LoraAdapter],
) -> None:
    bases = (pico_target, llama) if back else (llama, pico_target)
    pair = BasePair(other.target, other.source) if back else other
    made = mapper(pair)
    ported = made.map(random_adapter(bases[0], roles=roles))
    assert ported.base_model == bases[1].name
    assert set(ported) == set(bases[1].sites.of_roles(roles))
    for site, update in ported.items():
        assert update.shape == bases[1].sites.shapes[site]
        assert (update.rank, update.scale) == (3, 0.5)
        assert 0 < update.norm() < float("inf")
    for facts in made.report()["sites"].values():
        # Both are random: nothing is to be learnt, and the choice says so.
        assert facts["output_r2"] < 0.2
        assert facts["output_strength"] >= 0.1


def test_the_gauge_does_not_matter(
    other: BasePair,
    llama: BaseModel,
    random_adapter: Callable[..., LoraAdapter],
    regauged: Callable[[LoraAdapter, int], LoraAdapter],
) -> None:
    adapter = random_adapter(llama)
    made = mapper(other, strengths=[0.1])
    one, turned = made.map(adapter), made.map(regauged(adapter, 1))
    for site, update in one.items():
        torch.testing.assert_close(turned[site].dense(), update.dense(), rtol=1e-3, atol=1e-5)


def test_a_site_does_not_depend_on_which_others_there_are(
    other: BasePair, llama: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> None:
    adapter = random_adapter(llama)
    whole = mapper(other).map(adapter)
    for role in Role:
        alone = LoraAdapter({s: u for s, u in adapter.items() if s.role is role}, llama.name)
        for site, update in mapper(other).map(alone).items():
            assert torch.equal(update.A, whole[site].A)
            assert torch.equal(update.B, whole[site].B)


def test_every_weight_is_read_once(
    other: BasePair,
    llama: BaseModel,
    random_adapter: Callable[..., LoraAdapter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: Counter[tuple[Path, Site]] = Counter()
    weight = StreamedWeights.weight

    def counted(self: StreamedWeights, site: Site) -> Tensor:
        read[self.folder, site] += 1
        return weight(self, site)

    monkeypatch.setattr(StreamedWeights, "weight", counted)
    mapper(other).map(random_adapter(llama))
    expected = [(w.folder, site) for w in (other.source, other.target) for site in w.sites.shapes]
    assert read == Counter(expected)


def test_fewer_tokens_can_be_asked_for(
    other: BasePair, llama: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> None:
    # Fewer than either model is wide: the dual form.
    made = mapper(other, tokens=20)
    made.map(random_adapter(llama))
    assert made.report()["tokens"] == 20


@pytest.mark.parametrize("strengths", [[], [0.0], [-1.0], [0.1, float("inf")], [float("nan")]])
def test_strengths_that_are_no_penalty_are_refused(strengths: list[float]) -> None:
    with pytest.raises(ConfigurationError, match=r"mapper\.strengths is .* positive finite"):
        EmbeddingRidgeMapper(strengths=strengths)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"mapper\.tokens is 3"):
        EmbeddingRidgeMapper(tokens=3)


def test_vocabularies_that_share_nothing_are_refused(
    pico_source: BaseModel,
    pico_target: BaseModel,
    opened: Opened,
    random_adapter: Callable[..., LoraAdapter],
) -> None:
    made = mapper(BasePair(opened(pico_source), opened(pico_target)))
    with pytest.raises(ModelError, match="share"):
        made.map(random_adapter(pico_source))
