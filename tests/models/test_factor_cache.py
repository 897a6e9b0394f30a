import multiprocessing
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.adapters import Role, Site
from loraport.alignment.randomised_svd import TruncatedSvd, randomised_svd
from loraport.exceptions import ModelError, OutputError
from loraport.models import BaseModel
from loraport.models.factor_cache import FactorCache
from loraport.models.weights import StreamedWeights

SETTINGS = {"rank": 4, "oversampling": 2, "power_iterations": 1, "seed": 0}
CPU = torch.device("cpu")
DOWN = Site(1, Role.DOWN)


@pytest.fixture
def weights(pico_source: BaseModel, tmp_path: Path) -> StreamedWeights:
    pico_source.network.save_pretrained(tmp_path / "model")
    return StreamedWeights.open(tmp_path / "model", "pico/source")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the matrices that were factorised."""
    shapes: list[tuple[int, ...]] = []

    def noting(matrix: torch.Tensor, rank: int, **settings: int) -> TruncatedSvd:
        shapes.append(tuple(matrix.shape))
        return randomised_svd(matrix, rank, **settings)

    monkeypatch.setattr("loraport.models.factor_cache.randomised_svd", noting)
    return shapes


def svd(
    cache: FactorCache, weights: StreamedWeights, site: Site = DOWN, **other: Any
) -> TruncatedSvd:
    done = cache.svd(weights, site, device=CPU, **{**SETTINGS, **other})
    cache.flush()  # what is kept is written while the next weight is factorised
    return done


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same(one: TruncatedSvd, other: TruncatedSvd) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    assert one.energy == other.energy


def test_the_second_time_gives_the_same_bits_without_computing(
    weights: StreamedWeights, computed: list[Any], tmp_path: Path
) -> None:
    cold = svd(FactorCache(tmp_path / "cache"), weights)
    warm = svd(FactorCache(tmp_path / "cache"), weights)
    assert computed == [(32, 40)]
    assert_same(cold, warm)
    assert_same(cold, randomised_svd(weights.weight(DOWN), **SETTINGS))
    assert [part.stride() for part in cold[:3]] == [part.stride() for part in warm[:3]]
    (file,) = files(tmp_path / "cache")
    assert file.parent.name == file.name[:2]
    assert file.suffix == ".safetensors"
    assert set(load_file(file)) == {"U", "S", "V"}


def test_without_a_folder_nothing_is_kept(
    weights: StreamedWeights, computed: list[Any], tmp_path: Path
) -> None:
    before = files(tmp_path)
    cache = FactorCache(None)
    assert_same(svd(cache, weights), svd(cache, weights))
    assert len(computed) == 2
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "other", [{"rank": 5}, {"oversampling": 3}, {"power_iterations": 2}, {"seed": 1}]
)
def test_every_setting_is_in_the_key(
    other: dict[str, Any], weights: StreamedWeights, computed: list[Any], tmp_path: Path
) -> None:
    cache = FactorCache(tmp_path / "cache")
    svd(cache, weights)
    svd(cache, weights, **other)
    assert len(computed) == len(files(tmp_path / "cache")) == 2


def test_content_is_the_key_and_not_the_name(
    weights: StreamedWeights, computed: list[Any], tmp_path: Path
) -> None:
    cache = FactorCache(tmp_path / "cache")
    first = svd(cache, weights)
    weights.folder.rename(tmp_path / "moved")
    moved = StreamedWeights.open(tmp_path / "moved", "another/name")
    assert_same(svd(cache, moved), first)
    assert len(computed) == 1
    stored = load_file(tmp_path / "moved" / "model.safetensors")
    stored[f"{DOWN.module_name}.weight"][0, 0] += 1
    save_file(stored, tmp_path / "moved" / "model.safetensors")
    changed = svd(cache, StreamedWeights.open(tmp_path / "moved", "another/name"))
    assert changed.energy != first.energy
    svd(cache, moved, Site(0, Role.DOWN))
    assert len(computed) == 3


@pytest.mark.parametrize("damage", ["cut", "emptied", "other tensors", "no metadata"])
def test_damaged_file_is_computed_again(
    damage: str, weights: StreamedWeights, computed: list[Any], tmp_path: Path
) -> None:
    cache = FactorCache(tmp_path / "cache")
    first = svd(cache, weights)
    (file,) = files(tmp_path / "cache")
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[:-10])
    elif damage == "emptied":
        file.write_bytes(b"")
    elif damage == "other tensors":
        save_file({"U": first.U}, file)
    else:
        save_file({"U": first.U, "S": first.S, "V": first.V}, file)
    assert_same(svd(cache, weights), first)
    assert len(computed) == 2
    assert_same(svd(cache, weights), first)
    assert len(computed) == 2


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Let a write fail half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_told_and_leaves_nothing(weights: StreamedWeights, tmp_path: Path) -> None:
    cache = FactorCache(tmp_path / "cache")
    with (
        pytest.raises(OutputError, match=r"cache.*cannot be written.*free some space"),
        files_no_longer_than(300),
    ):
        svd(cache, weights)
    assert files(tmp_path / "cache") == []
    svd(cache, weights)
    assert len(files(tmp_path / "cache")) == 1


def test_forbidden_place_is_told(weights: StreamedWeights, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder is due")
    with pytest.raises(OutputError, match=r"cache.*cannot be written"):
        svd(FactorCache(tmp_path / "cache"), weights)


def test_weight_that_is_not_finite_is_refused(weights: StreamedWeights, tmp_path: Path) -> None:
    file = weights.folder / "model.safetensors"
    stored = load_file(file)
    stored[f"{DOWN.module_name}.weight"][0, 0] = float("nan")
    save_file(stored, file)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj of pico/source.*not finite"):
        svd(FactorCache(tmp_path / "cache"), weights)
    assert not (tmp_path / "cache").exists()


def _fill(folder: Path, cache: Path, start: Any) -> None:
    torch.set_num_threads(1)
    weights = StreamedWeights.open(folder, "pico/source")
    start.wait()
    for site in weights.sites.shapes:
        svd(FactorCache(cache), weights, site)


@pytest.mark.slow
def test_processes_share_a_folder(weights: StreamedWeights, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    processes = [
        context.Process(target=_fill, args=(weights.folder, tmp_path / "cache", start))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    kept = files(tmp_path / "cache")
    assert len(kept) == len(weights.sites.shapes)
    assert all(len(load_file(file)) == 3 for file in kept)
