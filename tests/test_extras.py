"""Without the extra [sweep], what takes it says so."""

import pytest
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException

from loraport.extras import SWEEP_PLUGINS, missing_plugin


@pytest.fixture
def _no_plugins(monkeypatch):
    """Hydra as it is where none of the plugins is installed."""
    Plugins.instance()
    groups = ConfigStore.instance().repo["hydra"]
    for kind, options in SWEEP_PLUGINS.items():
        for option in options:
            monkeypatch.delitem(groups[kind], f"{option}.yaml")


@pytest.mark.usefixtures("_no_plugins")
@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("hydra/launcher=processes", "hydra/launcher=joblib takes hydra-joblib-launcher,"),
        ("hydra/launcher=slurm", "=submitit_slurm takes hydra-submitit-launcher,"),
        ("hydra/launcher=ray_cluster", "hydra/launcher=ray takes hydra-ray-launcher,"),
        ("sweep=optuna_cast", "hydra/sweeper=optuna takes hydra-optuna-sweeper,"),
    ],
)
def test_a_missing_plugin_is_named_with_its_extra(choice, message):
    with (
        initialize_config_module("loraport.conf", version_base="1.3"),
        pytest.raises(MissingConfigException) as error,
    ):
        compose("train", overrides=[choice], return_hydra_config=True)
    told = missing_plugin(str(error.value))
    assert told is not None
    assert message in told
    assert "pip install 'loraport[sweep]'" in told


def test_what_never_existed_is_no_extra():
    with (
        initialize_config_module("loraport.conf", version_base="1.3"),
        pytest.raises(MissingConfigException) as error,
    ):
        compose("train", overrides=["hydra/launcher=proceses"], return_hydra_config=True)
    assert missing_plugin(str(error.value)) is None
