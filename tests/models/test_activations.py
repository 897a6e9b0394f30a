from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from loraport.adapters import LoraAdapter, Role, Site
from loraport.data.aligned_batch import TokenBatch
from loraport.models import ARCHITECTURES, BaseModel, attached
from loraport.models.activations import activations
from loraport.models.taps import Tap

# Twice the window of the pico models, so that a wrong mask of a sliding layer shows.
LENGTHS = (33, 7, 20)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, pico: Callable[[str], BaseModel]) -> BaseModel:
    return pico(request.param)


def texts(lengths: tuple[int, ...] = LENGTHS) -> TokenBatch:
    """Random tokens, padded on the right by a token that also occurs in texts."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 200, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return TokenBatch(torch.where(mask.bool(), ids, 7), mask)


def all_places(batch: TokenBatch) -> Tensor:
    return batch.attention_mask.flatten().nonzero().flatten()


def all_taps(base: BaseModel) -> list[Tap]:
    sites = list(base.sites.shapes)
    residual = [Tap.residual(layer) for layer in range(base.sites.layers)]
    return [*map(Tap.input, sites), *map(Tap.output, sites), *residual]


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


@contextmanager
def runs_of(network: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that are run, in order."""
    names: list[str] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, _o, name=name: names.append(name))
        for name, module in network.named_modules()
    ]
    yield names
    for handle in handles:
        handle.remove()


def test_taps_give_what_the_modules_read_and_write(base: BaseModel) -> None:
    batch = texts()
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        base.network.get_submodule(site.module_name).register_forward_hook(
            lambda _m, inputs, out, name=site.label: seen.update({name: (inputs[0], out)})
        )
        for site in base.sites.shapes
    ]
    base.network.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for handle in handles:
        handle.remove()
    places = all_places(batch)[[5, 2, 40]]
    found = activations(base.network, batch, places, all_taps(base))
    for site in base.sites.shapes:
        read, written = (x.flatten(0, 1)[places] for x in seen[site.label])
        torch.testing.assert_close(found[Tap.input(site)], read)
        torch.testing.assert_close(found[Tap.output(site)], written)
        out, in_ = base.sites.shapes[site]
        assert (read.shape[1], written.shape[1]) == (in_, out)


def test_residual_stream_agrees_with_transformers(base: BaseModel) -> None:
    batch = texts()
    states = base.network.model(*batch, output_hidden_states=True)
    taps = [Tap.residual(0), Tap.residual(1)]
    found = activations(base.network, batch, all_places(batch), taps)
    inside = batch.attention_mask.bool()
    torch.testing.assert_close(found[taps[0]], states.hidden_states[1][inside])
    # transformers gives the last layer's behind the final norm.
    normed = base.network.model.norm(found[taps[1]])
    torch.testing.assert_close(normed, states.last_hidden_state[inside])


def test_padding_changes_nothing(base: BaseModel) -> None:
    batch = texts()
    together = activations(base.network, batch, all_places(batch), all_taps(base))
    first = 0
    for text, length in enumerate(LENGTHS):
        alone = TokenBatch(
            batch.input_ids[text : text + 1, :length],
            batch.attention_mask[text : text + 1, :length],
        )
        found = activations(base.network, alone, torch.arange(length), all_taps(base))
        for tap, rows in found.items():
            torch.testing.assert_close(
                together[tap][first : first + length], rows, rtol=1e-4, atol=1e-5
            )
        first += length


def test_attached_adapter_takes_part(
    base: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> None:
    batch, site = texts(), Site(0, Role.V)
    adapter = random_adapter(base, roles=(Role.V,))
    taps = [Tap.input(site), Tap.output(site), Tap.residual(1)]
    places = all_places(batch)
    plain = activations(base.network, batch, places, taps)
    with attached(base.network, adapter):
        adapted = activations(base.network, batch, places, taps)
    update = adapter[site]
    expected = plain[taps[1]] + plain[taps[0]] @ (update.scale * update.B @ update.A).mT
    torch.testing.assert_close(adapted[taps[1]], expected, rtol=1e-4, atol=1e-5)
    assert (adapted[taps[2]] - plain[taps[2]]).abs().max() > 1e-3


def test_nothing_above_the_deepest_tap_is_run(pico_target: BaseModel) -> None:
    batch = texts()
    deepest = Tap.output(Site(1, Role.K))
    with runs_of(pico_target.network) as names:
        activations(pico_target.network, batch, all_places(batch), [Tap.residual(0), deepest])
    assert names[-1] == "model.layers.1.self_attn.k_proj"
    assert "model.layers.0" in names
    assert "model.layers.1" not in names
    assert not [name for name in names if "layers.2" in name or "lm_head" in name]


def test_input_of_a_module_is_read_without_running_it(pico_source: BaseModel) -> None:
    ids = torch.tensor([[4, 5, 6]])
    with runs_of(pico_source.network) as names:
        activations(
            pico_source.network,
            TokenBatch(ids, torch.ones_like(ids)),
            torch.arange(3),
            [Tap.input(Site(0, Role.DOWN))],
        )
    assert "model.layers.0.mlp.up_proj" in names
    assert "model.layers.0.mlp.down_proj" not in names


def test_without_taps_nothing_is_run(pico_source: BaseModel) -> None:
    ids = torch.tensor([[4, 5, 6]])
    with runs_of(pico_source.network) as names:
        found = activations(
            pico_source.network, TokenBatch(ids, torch.ones_like(ids)), torch.arange(3), []
        )
    assert found == {}
    assert names == []


def test_rows_are_copies_that_can_be_trained_on(pico_source: BaseModel) -> None:
    ids = torch.tensor([[4, 5, 6]])
    tap = Tap.residual(0)
    batch = TokenBatch(ids, torch.ones_like(ids))
    rows = activations(pico_source.network, batch, torch.tensor([1]), [tap])[tap]
    assert rows.untyped_storage().nbytes() == 32 * 4
    assert not rows.requires_grad
    weight = torch.ones(32, requires_grad=True)
    (rows @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, rows[0])


def test_hooks_do_not_stay(pico_target: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    network, batch = pico_target.network, texts()
    places, before = all_places(batch), hooks(network)
    first = activations(network, batch, places, all_taps(pico_target))
    for _ in range(3):
        again = activations(network, batch, places, all_taps(pico_target))
    assert hooks(network) == before
    assert all(torch.equal(first[tap], again[tap]) for tap in first)
    with pytest.raises(AttributeError):
        activations(network, batch, places, [Tap.residual(0), Tap.residual(99)])
    assert hooks(network) == before

    def broken(*_: object) -> Tensor:
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(network.model.layers[1].mlp, "forward", broken)
        with pytest.raises(RuntimeError, match="planted"):
            activations(network, batch, places, [Tap.residual(0), Tap.residual(2)])
    assert hooks(network) == before
    again = activations(network, batch, places, all_taps(pico_target))
    assert all(torch.equal(first[tap], again[tap]) for tap in first)
