from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from loraport.adapters import LoraAdapter, Role, Site
from loraport.data.text_corpus import AlignedBatch, TokenBatch
from loraport.exceptions import ConfigurationError, OutputError
from loraport.models import ARCHITECTURES, BaseModel, attached
from loraport.models.capture import ActivationCache, paired_readings, readings
from loraport.models.hooks import Tap, tap_widths
from loraport.store import Key

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
    states = base.network.model(*batch, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    places = all_places(batch)[[5, 2, 40]]
    found = readings(base.network, batch, places, all_taps(base))
    for site in base.sites.shapes:
        read, written = (x.flatten(0, 1)[places] for x in seen[site.label])
        torch.testing.assert_close(found[Tap.input(site)], read)
        torch.testing.assert_close(found[Tap.output(site)], written)
        out, in_ = base.sites.shapes[site]
        assert (read.shape[1], written.shape[1]) == (in_, out)
    stream = states.hidden_states[1].flatten(0, 1)[places]
    torch.testing.assert_close(found[Tap.residual(0)], stream)
    # transformers gives the last layer's behind the final norm.
    normed = base.network.model.norm(found[Tap.residual(1)])
    torch.testing.assert_close(normed, states.last_hidden_state.flatten(0, 1)[places])


def test_nothing_above_the_deepest_tap_is_run(pico_target: BaseModel) -> None:
    batch = texts()
    deepest = Tap.output(Site(1, Role.K))
    with runs_of(pico_target.network) as names:
        readings(pico_target.network, batch, all_places(batch), [Tap.residual(0), deepest])
    assert names[-1] == "model.layers.1.self_attn.k_proj"
    assert "model.layers.0" in names
    assert "model.layers.1" not in names
    assert not [name for name in names if "layers.2" in name or "lm_head" in name]


def test_input_of_a_module_is_read_without_running_it_and_without_taps_nothing_is(
    pico_source: BaseModel,
) -> None:
    batch = TokenBatch(torch.tensor([[4, 5, 6]]), torch.ones(1, 3, dtype=torch.long))
    with runs_of(pico_source.network) as names:
        assert readings(pico_source.network, batch, torch.arange(3), []) == {}
        assert names == []
        readings(pico_source.network, batch, torch.arange(3), [Tap.input(Site(0, Role.DOWN))])
    assert "model.layers.0.mlp.up_proj" in names
    assert "model.layers.0.mlp.down_proj" not in names


def test_rows_are_copies_that_can_be_trained_on(pico_source: BaseModel) -> None:
    ids = torch.tensor([[4, 5, 6]])
    tap = Tap.residual(0)
    batch = TokenBatch(ids, torch.ones_like(ids))
    rows = readings(pico_source.network, batch, torch.tensor([1]), [tap])[tap]
    assert rows.untyped_storage().nbytes() == 32 * 4
    assert not rows.requires_grad
    weight = torch.ones(32, requires_grad=True)
    (rows @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, rows[0])


GRADIENT_LENGTHS = (21, 6, 14)
WIDTH = max(GRADIENT_LENGTHS)
# Aligned tokens of each text: what lies between the first and the last of them counts.
ALIGNED = ((5, 9, 14, 17), (2, 5), (3, 12, 13))
PLACES = torch.tensor(
    [text * WIDTH + place for text, found in enumerate(ALIGNED) for place in found]
)
Spans = dict[int, tuple[int, int]]
SPANS = {text: (found[0], found[-1]) for text, found in enumerate(ALIGNED)}
SITES = (Site(0, Role.Q), Site(0, Role.V), Site(1, Role.K), Site(1, Role.O), Site(1, Role.DOWN))


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def gradient_base(request: pytest.FixtureRequest, pico: Callable[[str], BaseModel]) -> BaseModel:
    return pico(request.param)


def likelihood(base: BaseModel, spans: Spans) -> Tensor:
    """Return the log-likelihood of tokens ``(after, up to)`` of some texts, by the whole model."""
    batch = texts(GRADIENT_LENGTHS)
    logits = base.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    logs = logits.double().log_softmax(dim=2)
    counted = [
        logs[text, place - 1, batch.input_ids[text, place]]
        for text, (after, upto) in spans.items()
        for place in range(after + 1, upto + 1)
    ]
    return torch.stack(counted).sum()


def whole(base: BaseModel, site: Site, spans: Spans) -> Tensor:
    """Return the gradient of that with respect to what a module writes, at every place."""
    kept: list[Tensor] = []

    def start_here(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    handle = base.network.get_submodule(site.module_name).register_forward_hook(start_here)
    try:
        total = likelihood(base, spans)
    finally:
        handle.remove()
    return torch.autograd.grad(total, kept[0])[0].flatten(0, 1)


TAPS = [
    *map(Tap.input, SITES),
    *map(Tap.output, SITES),
    *map(Tap.gradient, SITES),
    Tap.residual(0),
    Tap.residual(1),
]


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.label)
def test_gradient_is_that_of_the_tokens_between_the_first_and_last_aligned_ends(
    gradient_base: BaseModel, site: Site
) -> None:
    tap = Tap.gradient(site)
    found = readings(gradient_base.network, texts(GRADIENT_LENGTHS), PLACES, [tap])[tap]
    expected = whole(gradient_base, site, SPANS)[PLACES]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    # What the last layer writes at these places has a say in their next tokens alone.
    for span in ((6, 17), (5, 16), (5, 18)) if site.layer == 0 else ():
        other = whole(gradient_base, site, {**SPANS, 0: span})[PLACES]
        assert (found - other).norm() > 0.01 * found.norm()


def test_texts_do_not_mix(gradient_base: BaseModel) -> None:
    batch, taps = texts(GRADIENT_LENGTHS), TAPS
    together = readings(gradient_base.network, batch, PLACES, taps)
    first = 0
    for text, aligned in enumerate(ALIGNED):
        length = GRADIENT_LENGTHS[text]
        alone = TokenBatch(
            batch.input_ids[text : text + 1, :length],
            batch.attention_mask[text : text + 1, :length],
        )
        found = readings(gradient_base.network, alone, torch.tensor(aligned), taps)
        for tap in taps:
            rows = together[tap][first : first + len(aligned)]
            torch.testing.assert_close(rows, found[tap], rtol=1e-4, atol=1e-5)
        first += len(aligned)


def test_activations_read_on_the_way_are_those_read_alone(gradient_base: BaseModel) -> None:
    wanted = [tap for tap in TAPS if tap.place != "gradient"]
    expected = readings(gradient_base.network, texts(GRADIENT_LENGTHS), PLACES, wanted)
    found = readings(gradient_base.network, texts(GRADIENT_LENGTHS), PLACES, TAPS)
    assert found.keys() == set(TAPS)
    for tap, rows in expected.items():
        torch.testing.assert_close(found[tap], rows, rtol=1e-5, atol=1e-6)


def test_a_text_of_one_aligned_token_has_no_gradient(gradient_base: BaseModel) -> None:
    taps = [Tap.gradient(site) for site in SITES]
    found, pair, alone = (
        readings(gradient_base.network, texts(GRADIENT_LENGTHS), torch.tensor(places), taps)
        for places in ([9, 14, WIDTH + 4], [9, 14], [4, WIDTH + 4])
    )
    for tap, rows in found.items():
        assert rows[0].any()
        assert not rows[1:].any(), "nor has the last aligned token of a text"
        torch.testing.assert_close(rows[:2], pair[tap])
        assert not alone[tap].any()


@pytest.mark.parametrize("taps", [TAPS[:10], TAPS], ids=["activations", "gradients"])
def test_nothing_stays(
    taps: list[Tap], gradient_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, before = gradient_base.network, hooks(gradient_base.network)
    first = readings(network, texts(GRADIENT_LENGTHS), PLACES, taps)

    def broken(*_: object, **__: object) -> Tensor:
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(network.model.layers[1].self_attn, "forward", broken)
        with pytest.raises(RuntimeError, match="planted"):
            readings(network, texts(GRADIENT_LENGTHS), PLACES, taps)
    with pytest.raises(AttributeError):
        readings(network, texts(GRADIENT_LENGTHS), PLACES, [Tap.residual(99), *taps])
    assert hooks(network) == before
    assert not any(rows.requires_grad for rows in first.values())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert torch.is_grad_enabled()
    with torch.no_grad():
        again = readings(network, texts(GRADIENT_LENGTHS), PLACES, taps)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(first[tap], again[tap]) for tap in first)


def test_attached_adapter_takes_part(
    gradient_base: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> None:
    site = Site(0, Role.V)
    adapter = random_adapter(gradient_base, roles=(Role.V,))
    read, written, *others = taps = [
        Tap.input(site),
        Tap.output(site),
        Tap.residual(1),
        Tap.gradient(site),
    ]
    plain = readings(gradient_base.network, texts(GRADIENT_LENGTHS), PLACES, taps)
    with attached(gradient_base.network, adapter):
        adapted = readings(gradient_base.network, texts(GRADIENT_LENGTHS), PLACES, taps)
    expected = plain[written] + plain[read] @ adapter[site].dense().mT
    torch.testing.assert_close(adapted[written], expected, rtol=1e-4, atol=1e-5)
    for tap in others:
        assert (adapted[tap] - plain[tap]).abs().max() > 1e-3


SOURCE, TARGET = Tap.residual(1), Tap.input(Site(2, Role.V))


def batches(count: int = 4) -> list[AlignedBatch]:
    """Batches of different sizes, whose places are paired in no simple way."""
    generator = torch.Generator().manual_seed(0)

    def side(texts: int, tokens: int) -> TokenBatch:
        ids = torch.randint(2, 20, (texts, tokens), generator=generator)
        return TokenBatch(ids, torch.ones_like(ids))

    def one(number: int) -> AlignedBatch:
        rows = 5 + number
        return AlignedBatch(
            side(2, 8),
            side(2, 20),
            torch.randperm(16, generator=generator)[:rows],
            torch.randperm(40, generator=generator)[:rows],
            torch.arange(rows) + 10 * number,
        )

    return [one(number) for number in range(count)]


def test_both_models_are_read_at_their_places(
    pico_source: BaseModel, pico_target: BaseModel
) -> None:
    networks = pico_source.network, pico_target.network
    read = list(paired_readings(*networks, batches(), ([SOURCE], [TARGET])))
    for found, batch in zip(read, batches(), strict=True):
        source = readings(networks[0], batch.source, batch.source_places, [SOURCE])
        target = readings(networks[1], batch.target, batch.target_places, [TARGET])
        assert torch.equal(found[0][SOURCE], source[SOURCE])
        assert torch.equal(found[1][TARGET], target[TARGET])


WIDTHS = {"source.0.residual": 6, "target.1.q.input": 10}
KEY = Key.of("activations", test="capture")
ROWS = sum(len(batch.documents) for batch in batches())


def rows(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {x: torch.randn(count, width, generator=generator) for x, width in WIDTHS.items()}


@pytest.fixture
def fill(pico_source: BaseModel, pico_target: BaseModel) -> Callable[..., None]:
    """Fill a cache from both models."""

    def fill(cache: ActivationCache, count: int = 4) -> None:
        networks = pico_source.network, pico_target.network
        cache.fill(*networks, batches(count), ([SOURCE], [TARGET]))

    return fill


@pytest.fixture
def runs(pico_source: BaseModel) -> Iterator[list[int]]:
    noted: list[int] = []
    handle = pico_source.network.model.embed_tokens.register_forward_hook(
        lambda *_: noted.append(1)
    )
    yield noted
    handle.remove()


@pytest.fixture
def opened(pico_source: BaseModel, pico_target: BaseModel) -> Callable[[Path], ActivationCache]:
    source = tap_widths(pico_source.sites, [SOURCE])[SOURCE]
    target = tap_widths(pico_target.sites, [TARGET])[TARGET]
    widths = {SOURCE.label_on("source"): source, TARGET.label_on("target"): target}
    return lambda folder: ActivationCache(folder, KEY, widths, ROWS)


def test_rows_come_back_as_bfloat16_holds_them(tmp_path: Path) -> None:
    cache = ActivationCache(tmp_path, KEY, WIDTHS, 50)
    written = rows(50)
    cache.write({label: x[:20] for label, x in written.items()})
    cache.write({label: x[20:] for label, x in written.items()})
    assert cache.complete
    index = torch.tensor([40, 3, 3, 19, 20])
    for read in (cache, ActivationCache(tmp_path, KEY, WIDTHS, 50)):
        assert read.complete
        for label, x in written.items():
            found = read.read(label, index)
            assert found.dtype == torch.float32
            assert torch.equal(found, x[index].bfloat16().float())
    assert sum(file.stat().st_size for file in cache.folder.iterdir()) == 50 * 16 * 2


def test_what_is_read_can_be_changed_without_changing_the_files(tmp_path: Path) -> None:
    cache = ActivationCache(tmp_path, KEY, WIDTHS, 5)
    cache.write(rows(5))
    label, index = "source.0.residual", torch.arange(5)
    first = cache.read(label, index).clone()
    cache.read(label, index).zero_()
    again = ActivationCache(tmp_path, KEY, WIDTHS, 5)
    assert torch.equal(again.read(label, index), first)


def test_a_stopped_capture_goes_on_from_the_last_whole_batch_and_a_finished_one_runs_nothing(
    fill: Callable[..., None],
    opened: Callable[[Path], ActivationCache],
    runs: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = opened(tmp_path / "straight")
    fill(straight)
    assert straight.complete
    begun, write = opened(tmp_path / "stopped"), ActivationCache.write

    def stopping(cache: ActivationCache, batch: dict[str, Tensor]) -> None:
        if cache.done == 11:
            raise KeyboardInterrupt
        write(cache, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ActivationCache, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            fill(begun)
    # The beginning of a batch that did not end.
    with (begun.folder / "source.1.residual.bf16").open("r+b") as file:
        file.seek(11 * 32 * 2)
        file.write(b"\x11" * 100)
    stopped = opened(tmp_path / "stopped")
    assert (stopped.done, stopped.complete) == (11, False)
    del runs[:]
    fill(stopped)
    assert len(runs) == 2
    for label in straight.widths:
        one, other = (x.folder / f"{label}.bf16" for x in (straight, stopped))
        assert one.read_bytes() == other.read_bytes()
    again = opened(tmp_path / "stopped")
    fill(again)
    assert len(runs) == 2
    assert again.read("target.2.q.input", torch.arange(ROWS)).std() > 0


def test_other_batches_are_refused(
    fill: Callable[..., None], opened: Callable[[Path], ActivationCache], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"0 of 26 rows.*corpus has 18.*remove the folder"):
        fill(opened(tmp_path), 3)


@pytest.mark.parametrize("damage", ["no progress", "cut", "missing"])
def test_what_is_damaged_is_begun_anew(damage: str, tmp_path: Path) -> None:
    cache = ActivationCache(tmp_path, KEY, WIDTHS, 5)
    cache.write(rows(5))
    file = cache.folder / "source.0.residual.bf16"
    if damage == "no progress":
        next(tmp_path.rglob("*.entry")).unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    assert ActivationCache(tmp_path, KEY, WIDTHS, 5).done == 0
    assert file.stat().st_size == 5 * 6 * 2


@pytest.mark.parametrize("label", WIDTHS)
def test_rows_that_have_changed_are_said_and_written_again_from_their_batch_on(
    label: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def written(cache: ActivationCache) -> None:
        while not cache.complete:
            cache.write(rows(5, seed=cache.done))

    cache = ActivationCache(tmp_path, KEY, WIDTHS, 20)
    written(cache)
    expected = cache.read(label, torch.arange(20))
    file = cache.folder / f"{label}.bf16"
    content = bytearray(file.read_bytes())
    content[len(content) // 4 + 1] ^= 1  # of the second batch; a number like any other
    file.write_bytes(content)
    again = ActivationCache(tmp_path, KEY, WIDTHS, 20)
    assert again.done == 5
    assert caplog.text.count(f"{cache.folder} is damaged from row 5 on") == 1
    written(again)
    assert torch.equal(again.read(label, torch.arange(20)), expected)
    assert ActivationCache(tmp_path, KEY, WIDTHS, 20).complete


def test_too_little_room_is_said_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        "loraport.models.capture.shutil.disk_usage", lambda _: usage(1, 1, 1_500_000_000)
    )
    with pytest.raises(OutputError, match=r"needs 3\.2 GB.*1\.5 GB free.*fewer tokens"):
        ActivationCache(tmp_path, KEY, WIDTHS, 100_000_000)
    assert not list(tmp_path.rglob("*.bf16"))


def test_nothing_to_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least one of each"):
        ActivationCache(tmp_path, KEY, WIDTHS, 0)
