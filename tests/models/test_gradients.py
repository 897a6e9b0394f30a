from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from loraport.adapters import LoraAdapter, Role, Site
from loraport.data.aligned_batch import TokenBatch
from loraport.models import BaseModel, attached
from loraport.models.activations import activations
from loraport.models.gradients import readings
from loraport.models.taps import Tap

LENGTHS = (21, 6, 14)
WIDTH = max(LENGTHS)
# Aligned tokens of each text: what lies between the first and the last of them counts.
ALIGNED = ((5, 9, 14, 17), (2, 5), (3, 12, 13))
PLACES = torch.tensor(
    [text * WIDTH + place for text, found in enumerate(ALIGNED) for place in found]
)
STEP = 0.01
Spans = dict[int, tuple[int, int]]
SPANS = {text: (found[0], found[-1]) for text, found in enumerate(ALIGNED)}
SITES = (Site(0, Role.Q), Site(0, Role.V), Site(1, Role.K), Site(1, Role.O), Site(1, Role.DOWN))


@pytest.fixture(scope="module", params=["llama", "gemma2", "gemma3_text"])
def base(request: pytest.FixtureRequest, pico: Callable[[str], BaseModel]) -> BaseModel:
    return pico(request.param)


def texts() -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 200, (len(LENGTHS), WIDTH), generator=generator)
    mask = (torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]).long()
    return TokenBatch(torch.where(mask.bool(), ids, 7), mask)


def likelihood(base: BaseModel, spans: Spans) -> Tensor:
    """Return the log-likelihood of tokens ``(after, up to)`` of some texts, by the whole model."""
    batch = texts()
    logits = base.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    logs = logits.double().log_softmax(dim=2)
    counted = [
        logs[text, place - 1, batch.input_ids[text, place]]
        for text, (after, upto) in spans.items()
        for place in range(after + 1, upto + 1)
    ]
    return torch.stack(counted).sum()


def nudged(base: BaseModel, site: Site, place: int, change: Tensor, spans: Spans) -> float:
    """Return the same with a module's output changed at a place."""

    def change_it(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        output = output.clone()
        output.view(-1, output.shape[-1])[place] += change
        return output

    handle = base.network.get_submodule(site.module_name).register_forward_hook(change_it)
    try:
        return float(likelihood(base, spans))
    finally:
        handle.remove()


def whole(base: BaseModel, site: Site, places: Tensor, span: tuple[int, int]) -> Tensor:
    """Return gradients of the first text's tokens ``(after, up to)``, by the whole model."""
    kept: list[Tensor] = []

    def start_here(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    handle = base.network.get_submodule(site.module_name).register_forward_hook(start_here)
    try:
        total = likelihood(base, {0: span})
    finally:
        handle.remove()
    return torch.autograd.grad(total, kept[0])[0].flatten(0, 1)[places]


def all_taps(sites: tuple[Site, ...] = SITES) -> list[Tap]:
    return [
        *map(Tap.input, sites),
        *map(Tap.output, sites),
        *map(Tap.gradient, sites),
        Tap.residual(0),
        Tap.residual(1),
    ]


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.label)
def test_gradient_is_what_a_small_change_of_the_output_does(base: BaseModel, site: Site) -> None:
    tap = Tap.gradient(site)
    found = readings(base.network, texts(), PLACES, [tap])[tap]
    generator = torch.Generator().manual_seed(3)
    checked = 0
    for row in (0, 2, 5, 6, 7):
        way = torch.randn(found.shape[1], generator=generator)
        # Along the gradient, where there is one, so that there is something to measure.
        step = STEP * (way / way.norm() + found[row] / found[row].norm().clamp_min(1e-12))
        place = int(PLACES[row])
        there, back = (nudged(base, site, place, sign * step, SPANS) for sign in (1, -1))
        expected = float(found[row] @ step)
        assert (there - back) / 2 == pytest.approx(expected, rel=0.03, abs=2e-5)
        checked += abs(expected) > 1e-4
    assert checked >= 1


def test_only_the_tokens_between_the_first_and_last_aligned_ends_count(base: BaseModel) -> None:
    site, places = Site(0, Role.O), torch.tensor([5, 16, 17])
    found = readings(base.network, texts(), places, [Tap.gradient(site)])[Tap.gradient(site)]
    torch.testing.assert_close(found, whole(base, site, places, (5, 17)), rtol=1e-3, atol=1e-4)
    for span in ((6, 17), (5, 16), (5, 18)):
        assert (found - whole(base, site, places, span)).norm() > 0.01 * found.norm()


def test_the_last_aligned_token_has_no_gradient(base: BaseModel) -> None:
    taps = [Tap.gradient(site) for site in SITES]
    found = readings(base.network, texts(), PLACES, taps)
    last = torch.tensor([3, 5, 8])
    for rows in found.values():
        assert not rows[last].any()
        assert rows[last - 1].any()


def test_texts_do_not_mix(base: BaseModel) -> None:
    batch, taps = texts(), [Tap.gradient(site) for site in SITES]
    together = readings(base.network, batch, PLACES, taps)
    first = 0
    for text, aligned in enumerate(ALIGNED):
        length = LENGTHS[text]
        alone = TokenBatch(
            batch.input_ids[text : text + 1, :length],
            batch.attention_mask[text : text + 1, :length],
        )
        found = readings(base.network, alone, torch.tensor(aligned), taps)
        for tap in taps:
            rows = together[tap][first : first + len(aligned)]
            torch.testing.assert_close(rows, found[tap], rtol=1e-4, atol=1e-5)
        first += len(aligned)


def test_activations_read_on_the_way_are_those_read_alone(base: BaseModel) -> None:
    wanted = [tap for tap in all_taps() if tap.place != "gradient"]
    expected = activations(base.network, texts(), PLACES, wanted)
    found = readings(base.network, texts(), PLACES, all_taps())
    assert found.keys() == set(all_taps())
    for tap, rows in expected.items():
        torch.testing.assert_close(found[tap], rows, rtol=1e-5, atol=1e-6)
    without = readings(base.network, texts(), PLACES, wanted)
    assert without.keys() == expected.keys()
    assert all(torch.equal(without[tap], rows) for tap, rows in expected.items())


def test_a_text_of_one_aligned_token_has_no_gradient(base: BaseModel) -> None:
    taps = [Tap.gradient(site) for site in SITES]
    found = readings(base.network, texts(), torch.tensor([9, 14, WIDTH + 4]), taps)
    pair = readings(base.network, texts(), torch.tensor([9, 14]), taps)
    for tap, rows in found.items():
        assert not rows[2].any()
        torch.testing.assert_close(rows[:2], pair[tap])
    alone = readings(base.network, texts(), torch.tensor([4, WIDTH + 4]), taps)
    assert not any(rows.any() for rows in alone.values())


def test_nothing_stays(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    network, before = base.network, hooks(base.network)
    first = readings(network, texts(), PLACES, all_taps())
    again = readings(network, texts(), PLACES, all_taps())
    assert all(torch.equal(first[tap], again[tap]) for tap in first)
    with monkeypatch.context() as patch:

        def broken(*_: object) -> Tensor:
            raise RuntimeError("planted")

        patch.setattr(network.model.layers[1].mlp, "forward", broken)
        with pytest.raises(RuntimeError, match="planted"):
            readings(network, texts(), PLACES, all_taps())
    assert hooks(network) == before
    assert not any(rows.requires_grad for rows in first.values())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert torch.is_grad_enabled()
    with torch.no_grad():
        inside = readings(network, texts(), PLACES, all_taps())
        assert not torch.is_grad_enabled()
    assert all(torch.equal(first[tap], inside[tap]) for tap in first)


def test_rows_are_copies(base: BaseModel) -> None:
    for rows in readings(base.network, texts(), PLACES, all_taps()).values():
        assert rows.untyped_storage().nbytes() == rows.nbytes


def test_attached_adapter_takes_part(
    base: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> None:
    site = Site(1, Role.V)
    taps = [Tap.output(site), Tap.gradient(site), Tap.gradient(Site(0, Role.V))]
    plain = readings(base.network, texts(), PLACES, taps)
    with attached(base.network, random_adapter(base, roles=(Role.V,))):
        adapted = readings(base.network, texts(), PLACES, taps)
        expected = activations(base.network, texts(), PLACES, taps[:1])
    torch.testing.assert_close(adapted[taps[0]], expected[taps[0]], rtol=1e-5, atol=1e-6)
    for tap in taps:
        assert (adapted[tap] - plain[tap]).abs().max() > 1e-3
