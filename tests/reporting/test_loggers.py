"""Names are stable: what docs and dashboards say is what is logged."""

import csv
import re
from pathlib import Path

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from loraport.component import Component
from loraport.exceptions import ConfigurationError, OutputError
from loraport.reporting.figures import write_chart
from loraport.reporting.loggers import (
    TensorBoardRunLogger,
    WandbRunLogger,
    begun_loggers,
    benchmark_metrics,
    finish_loggers,
    log_benchmark,
    log_results,
    method_label,
    plain_summary,
)

from .benchmark_sample import PAIR, all_refused, full_benchmark, nothing_known, two_pairs

KNOWN = re.compile(
    r"(gap|gap_nll|retention|accuracy|nll)/[^/]+/[^/]+"
    r"|summary/[^/]+/(gap_recovered(_low|_high|_nll)?|usable|margin(_over_mean)?|retention|drift)"
    r"|cost/[^/]+/\w+"
    r"|suites/[^/]+/[^/]+/[^/]+(/[^/]+)?"
    r"|drift/[^/]+/(kl|js|top1)/[^/]+(/[^/]+)?"
)


def test_numbers_stand_under_the_documented_names_of_method_task_and_seed():
    results = full_benchmark()
    metrics = benchmark_metrics(results)
    assert [n for found in metrics.values() for n in found if not KNOWN.fullmatch(n)] == []
    for method in results.methods:
        if method.summary is None:
            assert not any(f"/{method.name}/" in name for name in metrics[method.seed])
            continue
        found = metrics[method.seed]
        assert found[f"summary/{method.name}/gap_recovered"] == method.summary.gap_recovered
        for task, evidence in method.tasks.items():
            assert found.get(f"gap/{method.name}/{task}") == evidence.gap_recovered
            assert found[f"accuracy/{method.name}/{task}"] == evidence.scores["predicted"]


def test_drift_is_the_mean_over_the_tasks_on_generic_text():
    results = full_benchmark()
    mine = [
        d.kl
        for d in results.divergences
        if (d.condition.method, d.condition.seed, d.texts) == ("cast", 1, "generic")
    ]
    assert None not in mine
    found = benchmark_metrics(results)[1]
    assert found["summary/cast/drift"] == pytest.approx(sum(filter(None, mine)) / len(mine))
    assert "summary/copy/drift" not in found
    # What has no seed stands with the first.
    first, second = benchmark_metrics(results).values()
    assert [n for n in first if n.endswith("/base")]
    assert not [n for n in second if n.endswith("/base")]


def test_variants_and_pairs_are_told_apart():
    method = full_benchmark().methods[0]
    assert method_label(method, [PAIR]) == method.name
    varied = method.model_copy(update={"variant": {"data.anchors": "4"}})
    assert method_label(varied, [PAIR]) == f"{method.name}[data.anchors=4]"
    several = two_pairs()
    labels = {method_label(m, several.pairs) for m in several.methods}
    assert {label.rpartition("@")[2] for label in labels} == set(several.pairs)


@pytest.mark.parametrize("results", [nothing_known(), all_refused()], ids=["nothing", "refused"])
def test_nothing_to_log_is_no_error(results):
    assert not any("gap" in name for found in benchmark_metrics(results).values() for name in found)


def test_a_training_run_has_the_names_of_a_benchmark(results):
    found = benchmark_metrics(results.as_benchmark())[0]
    assert found["gap/pca_mlp/trec" if results.tasks["trec"].usable else "gap/pca_mlp/emotion"]
    assert found["summary/pca_mlp/gap_recovered"] == results.summary.gap_recovered
    assert found["cost/pca_mlp/fit"] == 1.5
    found = plain_summary(results)
    assert found["summary/gap_recovered"] == results.summary.gap_recovered
    assert "summary/objective" not in found
    report = {"objective": {"name": "validation_nll", "value": 0.7}}
    chosen = results.model_copy(update={"mapper_report": report})
    assert plain_summary(chosen)["summary/objective"] == 0.7


@pytest.fixture(autouse=True)
def _logged_out(tmp_path, monkeypatch):
    """No credentials, no mode and no files of the person who runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    wandb.teardown()
    yield
    if wandb.run is not None:
        wandb.finish()
    wandb.teardown()


def offline_runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


def test_a_training_run_is_offline_and_quiet(results, tmp_path, capfd, files):
    logger = WandbRunLogger(tmp_path, name="mapper=pca_mlp", group="sweep")
    assert isinstance(logger, WandbLogger)
    run = logger.experiment
    assert run.offline
    assert (run.name, run.group, run.project) == ("mapper=pca_mlp", "sweep", "loraport")
    log_results([logger], results, files[0])
    assert {
        *("summary/gap_recovered", "summary/pca_mlp/gap_recovered", "gap/pca_mlp/emotion"),
        *("benchmark/methods", "benchmark/tasks", "charts/gap_by_task"),
    } <= set(run.summary.keys())
    assert run.summary["summary/gap_recovered"] == results.summary.gap_recovered
    assert run.config["mapper"]["components"] == 8
    [place] = finish_loggers([logger])
    assert wandb.run is None
    [folder] = offline_runs(tmp_path)
    assert str(folder) in place
    assert "wandb sync" in place
    assert capfd.readouterr() == ("", "")


def test_two_jobs_in_one_process_are_two_runs_of_one_group(results, tmp_path):
    sweep = tmp_path / "multirun" / "train" / "2026-01-02_03-04-05"
    runs = []
    for job in ("0", "1"):
        logger = WandbRunLogger(sweep / job, sweep_dir=sweep)
        log_results([logger], results)
        runs.append((logger.experiment.id, logger.experiment.group))
        finish_loggers([logger])
        assert len(offline_runs(sweep / job)) == 1
    assert runs[0][0] != runs[1][0]
    assert {group for _, group in runs} == {"train-2026-01-02_03-04-05"}


@pytest.mark.parametrize(
    ("save_dir", "sweep_dir", "group"),
    [
        ("/runs/multirun/train/now/3", "multirun/train/now", "train-now"),
        ("/runs/multirun/train/now/3", "/runs/multirun/train/now", "train-now"),
        ("/runs/outputs/train/now", "multirun/train/now", None),
        ("/runs/outputs/train/now", None, None),
    ],
)
def test_only_runs_inside_the_sweep_are_grouped(save_dir, sweep_dir, group):
    assert WandbRunLogger(save_dir, sweep_dir=sweep_dir)._wandb_init["group"] == group


def test_whoever_has_logged_in_is_online(tmp_path, monkeypatch):
    modes = []

    def begin(**settings):
        modes.append(settings["mode"])
        if settings["mode"] == "online":
            raise wandb.errors.CommError("no such host")
        return begun(**settings)

    begun = wandb.init
    monkeypatch.setattr(wandb, "init", begin)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    logger = WandbRunLogger(tmp_path)
    assert logger.experiment.offline
    assert modes == ["online", "offline"], "without a server the run goes on offline"
    finish_loggers([logger])


def test_unusable_credentials_are_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ConfigurationError, match=r"credentials cannot be used .*logger=csv"):
        _ = WandbRunLogger(tmp_path).experiment


def test_wandb_mode_overrules(results, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbRunLogger(tmp_path)
    log_results([logger], results)
    assert finish_loggers([logger]) == []
    assert offline_runs(tmp_path) == []
    assert finish_loggers([WandbRunLogger(tmp_path / "unused")]) == []
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("value", ["true", "1", "yes"])
def test_wandb_disabled_is_honoured(results, tmp_path, monkeypatch, value):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_DISABLED", value)
    logger = WandbRunLogger(tmp_path)
    log_results([logger], results)
    assert finish_loggers([logger]) == []
    assert offline_runs(tmp_path) == []


WANDB = "loraport.reporting.WandbRunLogger"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WANDB_MODE": "online"}, "nobody has logged in to W&B; run `wandb login`"),
        ({"WANDB_MODE": "nowhere"}, "logger=wandb cannot be used .*WANDB_MODE.*logger=csv"),
        ({"WANDB_API_KEY": "short"}, "credentials cannot be used"),
        ({"WANDB_MODE": "online", "WANDB_API_KEY": "short"}, "credentials cannot be used"),
    ],
)
def test_what_the_environment_says_is_checked_before_anything_is_logged(
    tmp_path, monkeypatch, variables, message
):
    monkeypatch.setenv("HOME", str(tmp_path))  # where a login would lie
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    component = Component.model_validate({"_target_": WANDB, "save_dir": str(tmp_path)})
    with pytest.raises(ConfigurationError, match=message):
        begun_loggers({"wandb": component})


@pytest.mark.parametrize(
    "target",
    [
        WANDB,
        "loraport.reporting.loggers.TensorBoardRunLogger",
        "lightning.pytorch.loggers.CSVLogger",
    ],
)
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_logged(
    tmp_path, monkeypatch, target
):
    monkeypatch.setenv("WANDB_DISABLED", "")
    (tmp_path / "file").write_text("")
    node = {"_target_": target, "save_dir": str(tmp_path / "file" / "below")}
    with pytest.raises(OutputError, match=r"logger=mine cannot write .*file.*Not a directory"):
        begun_loggers({"mine": Component.model_validate(node)})


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    def missing(logger, *rest, **more):
        raise ModuleNotFoundError("neither tensorboard nor tensorboardX")

    monkeypatch.setattr(TensorBoardLogger, "__init__", missing)
    with pytest.raises(ConfigurationError, match=r"pip install 'loraport\[dashboards\]'"):
        TensorBoardRunLogger(tmp_path)


TABLES = {"benchmark/methods", "benchmark/tasks", "benchmark/suites", "benchmark/divergences"}


@pytest.fixture
def files(results, tmp_path) -> list[Path]:
    page = tmp_path / "report.html"
    page.write_text("<!DOCTYPE html><title>report</title>it works")
    (tmp_path / "methods.csv").write_text("a,b\n")
    return [write_chart(results, tmp_path / "gap_by_task.png"), page, tmp_path / "methods.csv"]


def plain(summary):
    """W&B's summary, whose parts are no mappings, as a dictionary."""
    if not hasattr(summary, "keys"):
        return summary
    return {name: plain(summary[name]) for name in summary.keys()}  # noqa: SIM118


def test_a_run_has_every_name_and_media_beside_it(tmp_path, files):
    results = full_benchmark()
    logger = WandbRunLogger(tmp_path)
    log_benchmark([logger], results, files)
    run = logger.experiment
    logged = plain(run.summary)
    finish_loggers([logger])
    first, last = benchmark_metrics(results).values()
    assert set(first) <= set(logged)
    assert {name: logged[name] for name in last} == pytest.approx(last)
    assert run.config["methods"] == [method.name for method in results.methods]
    [folder] = offline_runs(tmp_path)
    for name in (*TABLES, "charts/gap_by_task", "pages/report"):
        told = logged[name]
        for file in told["filenames"] if "filenames" in told else [told["path"]]:
            assert (folder / "files" / file).is_file(), name


def test_tensorboard_has_numbers_tables_and_charts(tmp_path, files):
    results = full_benchmark()
    logger = TensorBoardRunLogger(tmp_path)
    log_benchmark([logger], results, files)
    [place] = finish_loggers([logger])
    assert Path(place) == tmp_path / "tensorboard"
    events = EventAccumulator(place).Reload()
    tags = events.Tags()
    for seed, found in benchmark_metrics(results).items():
        for name, number in found.items():
            values = {event.step: event.value for event in events.Scalars(name)}
            assert values[seed] == pytest.approx(number, rel=1e-6), name
    assert tags["images"] == ["charts/gap_by_task"]
    assert {f"{name}/text_summary" for name in TABLES} <= set(tags["tensors"])
    [event] = events.Tensors("benchmark/methods/text_summary")
    assert "transport+corpus\\_distill" in event.tensor_proto.string_val[0].decode()


def test_csv_has_a_row_a_seed(tmp_path):
    results = full_benchmark()
    logger = CSVLogger(tmp_path, name="csv", version="")
    log_benchmark([logger], results)
    [place] = finish_loggers([logger])
    rows = list(csv.DictReader((Path(place) / "metrics.csv").read_text().splitlines()))
    assert [(float(row["seed"]), int(row["step"])) for row in rows] == [(0, 0), (1, 1)]
    found = benchmark_metrics(results)
    for row, seed in zip(rows, found, strict=True):
        number = found[seed]["summary/pca_mlp/gap_recovered"]
        assert float(row["summary/pca_mlp/gap_recovered"]) == pytest.approx(number)
