"""The dtype in which models teach and learn."""

import pytest
import torch

from loraport.exceptions import ConfigurationError
from loraport.models import BaseModel
from loraport.models.learning_dtype import learning_dtype

LARGE = "loraport.models.learning_dtype._LARGE"


@pytest.mark.parametrize(("units", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_for_large_networks_where_there_are_units_for_it(
    units: bool, expected: torch.dtype, pico_target: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: units)
    assert learning_dtype("auto", pico_target) == torch.float32
    monkeypatch.setattr(LARGE, pico_target.network.num_parameters())
    assert learning_dtype("auto", pico_target) == expected


def test_dtype_that_is_named_is_taken(pico_target: BaseModel) -> None:
    assert learning_dtype("bfloat16", pico_target) == torch.bfloat16


def test_unknown_dtype_is_refused_with_the_known_ones(pico_target: BaseModel) -> None:
    with pytest.raises(ConfigurationError, match=r"'half'; it takes auto or one of float32"):
        learning_dtype("half", pico_target)
