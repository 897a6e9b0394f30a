from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.alignment.linear_maps import Rotated
from loraport.alignment.procrustes import AnchorLocks
from loraport.exceptions import ConfigurationError
from loraport.mappers import load_mapper
from loraport.mappers.from_text import ModelPair
from loraport.mappers.procrustes import ProcrustesMapper

Fit = Callable[..., Path]
Draw = Callable[..., LoraAdapter]
Twist = Callable[[torch.Tensor], ModelPair]

ROTATION = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(3))).Q
RULES = {
    "plain": (Rotated(), None),
    "unscaled": (Rotated(scaled=False), None),
    "locked": (Rotated(), AnchorLocks(components=1)),
}


@pytest.mark.parametrize(("rule", "locks"), RULES.values(), ids=RULES)
def test_planted_rotation_of_the_residual_stream_is_recovered(
    rule: Rotated, locks: AnchorLocks | None, twisted: Twist, fit_on_text: Fit, random_adapter: Draw
) -> None:
    pair = twisted(ROTATION)
    given = random_adapter(pair.source, roles=(Role.Q, Role.V))
    mapper = ProcrustesMapper(rule=rule, locks=locks)
    checkpoint = fit_on_text(mapper, pair)
    # x_S Q = x_T in row convention: R_in is Q and A_T = A_S Q; R_out is the identity.
    expected = given.map(lambda u: LowRank(u.A @ ROTATION, u.B, u.scale))
    assert relative_error(mapper.map(given), expected) < 1e-4
    wrong = given.map(lambda u: LowRank(u.A @ ROTATION.mT, u.B, u.scale))
    assert relative_error(mapper.map(given), wrong) > 1
    report = load_mapper(checkpoint).report()
    assert report["rule"]["name"] == "Rotated"
    if locks is None:
        assert report["anchor_locks"] == {}
    else:
        found = report["anchor_locks"]["1.q.input > 1.q.input"]
        assert found == {"anchors": 256, "violated": 0, "rounds": 0}
        assert len(report["anchor_locks"]) == 2 * 3


def test_fewer_tokens_than_dimensions_invent_no_rotation(
    twisted: Twist, fit_on_text: Fit, random_adapter: Draw
) -> None:
    pair = twisted(ROTATION)
    mapper = ProcrustesMapper(rule=Rotated(scaled=False))
    fit_on_text(mapper, pair, tokens=12)
    for (_, target), into in mapper.maps.inputs.items():
        values = torch.linalg.svdvals(into.matrix)
        rank = int((values > 1e-4).sum())
        assert rank <= 12, target
        assert torch.allclose(values[:rank], torch.ones(rank), atol=1e-5)
    given = random_adapter(pair.source, roles=(Role.Q, Role.V))
    assert mapper.map(given).norm() < 0.75 * given.norm()


def test_violated_locks_are_counted_and_the_pair_goes_on(
    models: ModelPair, adapter: LoraAdapter, fit_on_text: Fit
) -> None:
    mapper = ProcrustesMapper(
        rule=Rotated(scaled=False), roles=["q", "v"], locks=AnchorLocks(rounds=2), anchors=300
    )
    fit_on_text(mapper, models)
    locks = mapper.report()["anchor_locks"]
    # Two networks with random weights have little in common.
    assert sum(lock["violated"] for lock in locks.values()) > 0
    assert {lock["rounds"] for lock in locks.values()} <= {0, 1, 2}
    assert mapper.map(adapter).norm() > 0


def test_inputs_and_outputs_have_rotations_of_their_own(
    models: ModelPair, fit_on_text: Fit
) -> None:
    mapper = ProcrustesMapper(rule=Rotated(scaled=False), roles=["v"])
    fit_on_text(mapper, models)
    into = mapper.maps.inputs[Site(0, Role.Q), Site(0, Role.Q)].matrix
    out = mapper.maps.outputs[Site(0, Role.V), Site(0, Role.V)].matrix
    for matrix, shape in ((into, (32, 48)), (out, (12, 16))):
        assert matrix.shape == shape
        assert torch.allclose(matrix @ matrix.mT, torch.eye(shape[0]), atol=1e-4)


def test_locks_are_off_unless_they_are_switched_on_as_the_yaml_says() -> None:
    kind = "++mapper.locks._target_=loraport.alignment.procrustes.AnchorLocks"
    for overrides, expected in (
        ([], None),
        ([kind], AnchorLocks()),
        ([kind, "++mapper.locks.rounds=3"], AnchorLocks(rounds=3)),
    ):
        with initialize_config_module("loraport.conf", version_base=None):
            config = compose("train", overrides=["mapper=procrustes", *overrides])
        assert instantiate(config.mapper).locks == expected


def test_no_anchor_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"mapper\.anchors is 0; it takes 1 or more"):
        ProcrustesMapper(anchors=0)
