import csv
from pathlib import Path

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from loraport.exceptions import ConfigurationError
from loraport.reporting import WandbRunLogger, finish_loggers, log_results, write_chart
from loraport.reporting.loggers import _sweep_group


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


def test_a_run_is_offline_and_quiet(results, tmp_path, capfd):
    chart = write_chart(results, tmp_path / "chart.png")
    logger = WandbRunLogger(tmp_path, name="mapper=pca_mlp", group="sweep")
    assert isinstance(logger, WandbLogger)
    run = logger.experiment
    assert run.offline
    assert (run.name, run.group, run.project) == ("mapper=pca_mlp", "sweep", "loraport")
    log_results([logger], results, chart)
    assert logger.experiment.summary["summary/gap_recovered"] == results.summary.gap_recovered
    places = finish_loggers([logger])
    assert wandb.run is None
    [folder] = offline_runs(tmp_path)
    assert str(folder) in places[0]
    assert "wandb sync" in places[0]
    media = {file.suffix for file in (folder / "files" / "media").rglob("*") if file.is_file()}
    assert media == {".json", ".png"}
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
    assert _sweep_group(Path(save_dir), sweep_dir) == group


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


def test_a_logger_that_was_never_used_leaves_nothing(tmp_path):
    assert finish_loggers([WandbRunLogger(tmp_path / "run")]) == []
    assert not (tmp_path / "run").exists()


def test_csv_has_the_summary(results, tmp_path):
    logger = CSVLogger(tmp_path, name="csv", version="")
    log_results([logger], results)
    [place] = finish_loggers([logger])
    [row] = csv.DictReader((Path(place) / "metrics.csv").read_text().splitlines())
    assert float(row["summary/gap_recovered"]) == pytest.approx(results.summary.gap_recovered)
    assert float(row["summary/usable"]) == 4
    assert Path(place) == tmp_path / "csv"
