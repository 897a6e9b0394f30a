from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from loraport.reporting.heat_maps import write_heat_maps

from .test_intersection_map import content_of, grid

PAIRING = (0xD5 / 255, 0x5E / 255, 0)


def pixels(path: Path) -> np.ndarray:
    return imread(path)[..., :3]


def drawn(picture: np.ndarray) -> int:
    """How many pixels have the pairing's colour."""
    return int((abs(picture - np.array(PAIRING)).max(axis=-1) < 0.02).sum())


def test_a_picture_a_measure_with_the_pairing_in_it(tmp_path: Path) -> None:
    files = write_heat_maps(content_of(), tmp_path)
    assert {name: path.name for name, path in files.items()} == {
        "mutual_knn": "mutual_knn.png",
        "rsa": "rsa.png",
    }
    picture = pixels(files["rsa"])
    assert picture.shape[0] > 300
    assert picture.shape[1] > 600
    bare = write_heat_maps(content_of(pairing=((), ())), tmp_path / "bare")
    assert drawn(picture) > drawn(pixels(bare["rsa"])) + 100


def test_other_values_give_another_picture_and_the_same_ones_the_same_file(tmp_path: Path) -> None:
    content = content_of()
    one = write_heat_maps(content, tmp_path / "one")["rsa"].read_bytes()
    assert write_heat_maps(content, tmp_path / "two")["rsa"].read_bytes() == one
    changed = content.measures["rsa"].model_copy(update={"raw": grid(2, 3)[::-1]})
    other = content.model_copy(update={"measures": {"rsa": changed}})
    assert write_heat_maps(other, tmp_path / "three")["rsa"].read_bytes() != one


@pytest.mark.parametrize(("targets", "sources"), [(2, 2), (18, 30), (80, 60)])
def test_any_number_of_layers(tmp_path: Path, targets: int, sources: int) -> None:
    measures = {"mutual_knn": content_of(targets, sources).measures["mutual_knn"]}
    content = content_of(targets, sources, measures=measures)
    picture = pixels(write_heat_maps(content, tmp_path)["mutual_knn"])
    assert picture.shape[0] < 2000
    assert picture.shape[1] < 3000


def test_undefined_values_are_left_blank(tmp_path: Path) -> None:
    content = content_of()
    hollow = content.measures["rsa"].model_copy(update={"raw": ((None, 0.1, 0.2), (0.3, 0.4, 0.5))})
    content = content.model_copy(update={"measures": {"rsa": hollow}})
    assert write_heat_maps(content, tmp_path)["rsa"].stat().st_size > 5000
