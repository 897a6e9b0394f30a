import pytest
import scipy.stats
from matplotlib.image import imread

from loraport.reporting import write_chart
from loraport.reporting.charts import wilson_interval

from .conftest import conditions, results_of


def test_the_chart_is_a_png_with_bars_of_every_colour(results, tmp_path):
    path = write_chart(results, tmp_path / "chart.png")
    pixels = imread(path)[..., :3]
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 800
    for colour in ("BBBBBB", "56B4E9", "D55E00", "009E73"):
        wanted = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        assert (abs(pixels - wanted).max(axis=-1) < 0.01).sum() > 1000, colour
    assert [file.name for file in tmp_path.iterdir()] == ["chart.png"]


def test_a_higher_score_is_a_higher_bar(tmp_path):
    def orange(predicted):
        results = results_of({"task": conditions(30, predicted, 90)})
        pixels = imread(write_chart(results, tmp_path / "chart.png"))[..., :3]
        wanted = [0xD5 / 255, 0x5E / 255, 0]
        return int((abs(pixels - wanted).max(axis=-1) < 0.01).sum())

    assert orange(80) > 1.5 * orange(40)


def test_the_same_results_give_the_same_file(results, tmp_path):
    one = write_chart(results, tmp_path / "one.png").read_bytes()
    assert write_chart(results, tmp_path / "two.png").read_bytes() == one


def test_pyplot_is_not_touched(results, tmp_path):
    import matplotlib.pyplot as plt

    write_chart(results, tmp_path / "chart.png")
    assert plt.get_fignums() == []


@pytest.mark.parametrize("count", [0, 1, 12])
def test_any_number_of_tasks(count, tmp_path):
    names = [f"tweet_eval_stance_{place}" for place in range(count)]
    results = results_of({name: conditions(30, 50, 60) for name in names})
    assert write_chart(results, tmp_path / "chart.png").stat().st_size > 5000


@pytest.mark.parametrize(("right", "rows"), [(0, 20), (7, 20), (150, 300), (300, 300)])
def test_wilson_interval_agrees_with_scipy(right, rows):
    reference = scipy.stats.binomtest(right, rows).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right / rows, rows) == pytest.approx((reference.low, reference.high))


def test_a_cartridge_has_a_bar_where_there_is_one(tmp_path):
    def amber(**others):
        results = results_of({"task": conditions(30, 50, 90, **others)})
        pixels = imread(write_chart(results, tmp_path / "chart.png"))[..., :3]
        wanted = [0xE6 / 255, 0x9F / 255, 0]
        return int((abs(pixels - wanted).max(axis=-1) < 0.01).sum())

    assert amber() == 0
    assert amber(cartridge=54) > 1000
