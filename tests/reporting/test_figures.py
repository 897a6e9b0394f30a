import io
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image

from loraport.evaluation.records import BenchmarkResults
from loraport.reporting.figures import (
    Chart,
    benchmark_charts,
    gap_chart,
    page_svg,
    styled,
    suite_chart,
    write_chart,
    write_heat_maps,
)

from .benchmark_sample import (
    PAIR,
    all_refused,
    full_benchmark,
    many_tasks,
    method_of,
    no_usable_task,
    nothing_known,
    one_mapper,
    two_pairs,
)
from .benchmark_sample import results_of as benchmark_of
from .conftest import conditions, results_of
from .test_records import content_of


def pixels(path: Path) -> np.ndarray:
    return imread(path)[..., :3]


def count(path: Path, colour: str) -> int:
    """How many pixels have a colour."""
    wanted = np.array([int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)])
    return int((abs(pixels(path) - wanted).max(axis=-1) < 0.01).sum())


def test_the_chart_is_a_png_with_bars_of_every_colour(results, tmp_path):
    path = write_chart(results, tmp_path / "chart.png")
    height, width = pixels(path).shape[:2]
    assert (height > 400, width > 800) == (True, True)
    for colour in ("BBBBBB", "56B4E9", "D55E00", "009E73"):
        assert count(path, colour) > 1000, colour
    assert write_chart(results, tmp_path / "two.png").read_bytes() == path.read_bytes()


def test_a_higher_score_is_a_higher_bar(tmp_path):
    def orange(predicted):
        results = results_of({"task": conditions(30, predicted, 90)})
        return count(write_chart(results, tmp_path / "chart.png"), "D55E00")

    assert orange(80) > 1.5 * orange(40)


@pytest.mark.parametrize("tasks", [0, 12])
def test_any_number_of_tasks(tasks, tmp_path):
    names = [f"tweet_eval_stance_{index}" for index in range(tasks)]
    results = results_of({name: conditions(30, 50, 60) for name in names})
    assert write_chart(results, tmp_path / "chart.png").stat().st_size > 5000


def test_a_cartridge_has_a_bar_where_there_is_one(tmp_path):
    def amber(**others):
        results = results_of({"task": conditions(30, 50, 90, **others)})
        return count(write_chart(results, tmp_path / "chart.png"), "E69F00")

    assert amber() == 0
    assert amber(cartridge=54) > 1000


def test_a_picture_a_measure_with_the_pairing_in_it(tmp_path: Path) -> None:
    measures = {"rsa": content_of().measures["rsa"]}
    files = write_heat_maps(content_of(measures=measures), tmp_path)
    assert files == {"rsa": tmp_path / "rsa.png"}
    picture = pixels(files["rsa"])
    assert picture.shape[0] > 300
    assert picture.shape[1] > 600
    bare = write_heat_maps(content_of(pairing=((), ()), measures=measures), tmp_path / "bare")
    assert count(files["rsa"], "D55E00") > count(bare["rsa"], "D55E00") + 100


def test_other_values_give_another_picture_and_the_same_ones_the_same_file(tmp_path: Path) -> None:
    content = content_of(measures={"rsa": content_of().measures["rsa"]})
    # Undefined values are left blank.
    undefined = {"raw": ((None, 0.1, 0.2), (0.3, 0.4, 0.5))}
    hollow = content.measures["rsa"].model_copy(update=undefined)
    one = write_heat_maps(content, tmp_path / "one")["rsa"].read_bytes()
    assert write_heat_maps(content, tmp_path / "two")["rsa"].read_bytes() == one
    other = content.model_copy(update={"measures": {"rsa": hollow}})
    assert write_heat_maps(other, tmp_path / "three")["rsa"].read_bytes() != one


@pytest.mark.parametrize(("targets", "sources"), [(2, 2), (80, 60)])
def test_any_number_of_layers(tmp_path: Path, targets: int, sources: int) -> None:
    measures = {"mutual_knn": content_of(targets, sources).measures["mutual_knn"]}
    content = content_of(targets, sources, measures=measures)
    picture = pixels(write_heat_maps(content, tmp_path)["mutual_knn"])
    assert picture.shape[0] < 2000
    assert picture.shape[1] < 3000


def gap_of(results: BenchmarkResults) -> Chart:
    with styled():
        chart = gap_chart(results, PAIR, "gap")
    assert chart is not None
    return chart


@pytest.fixture(scope="module")
def gap() -> Chart:
    return gap_of(one_mapper())


def names_of(results):
    return {part: [c.name for c in charts] for part, charts in benchmark_charts(results).items()}


def test_what_is_not_known_is_not_drawn():
    assert names_of(all_refused()) == {}
    assert names_of(no_usable_task()) == {}
    assert list(names_of(nothing_known())) == ["map"]


def test_the_picture_is_white_and_the_pages_chart_follows_its_colours(gap):
    picture = Image.open(io.BytesIO(gap.png)).convert("RGB")
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    colours = picture.getcolors(maxcolors=picture.width * picture.height)
    assert colours is not None
    assert (0, 158, 115) in {colour for _, colour in colours}
    for part in ("fill: currentColor", "stroke: var(--text)", "var(--grid)", "--natural: "):
        assert part in gap.svg
    assert re.findall(r"(?:fill|stroke): ?#(?:222222|009e73|e5e5e5)", gap.svg) == []


def test_drawing_twice_gives_the_same_and_leaves_the_settings(gap):
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    assert gap_of(one_mapper()) == gap
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


def test_text_in_a_chart_stays_as_it_is():
    text = '<text>fill: #222222 id="</text></g></svg>'
    page = page_svg(f'<?xml?><svg width="72pt" xmlns="http://a"><g id="x">{text}', "name")
    assert page == f'<svg style="--natural: 112px"><g id="name-x">{text}'


def test_a_panel_a_task_and_dots_for_many(gap):
    many = gap_of(many_tasks())
    assert ">sst2</text>" in gap.svg
    assert ">trec</text>" not in gap.svg
    assert ">task_000</text>" not in many.svg
    assert "Each of the 30 usable tasks is a small dot." in many.caption


def test_gaps_beyond_the_panel_are_drawn_at_its_edge():
    method = method_of("cast")
    wild = {
        name: task.model_copy(update={"gap_recovered": 40.0, "ci95": None})
        for name, task in method.tasks.items()
    }
    chart = gap_of(benchmark_of([method.model_copy(update={"tasks": wild})]))
    assert ">1.50</text>" in chart.svg
    assert ">40" not in chart.svg


def test_the_safety_suite_shows_the_lines_of_the_hypothesis():
    results = full_benchmark()
    with styled():
        chart = suite_chart(results, results.suites[0], PAIR, "safety")
        other = suite_chart(results, results.suites[1], PAIR, "reasoning")
    assert chart is not None
    assert chart.svg.count("stroke-dasharray: 2.96,1.28") == 2
    assert "10 and 20 points" in chart.caption
    assert other is None


def test_every_pair_has_charts_of_its_own():
    charts = benchmark_charts(two_pairs())
    assert [len(charts[part]) for part in ("gap", "cost", "map")] == [2, 2, 2]
    names = [chart.name for found in charts.values() for chart in found]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"\w+", name) for name in names)
