import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from loraport.adapters import LoraAdapter, Role
from loraport.models import BaseModel
from loraport.refinement.student import Student
from loraport.refinement.student_training import Course, train_student

STEPS = 8


class Pulled(Student):
    """Every update is pulled towards a matrix that the batch names; no network is run."""

    stop_at: int | None = None
    stop_within_step = False
    kind: type[BaseException] = KeyboardInterrupt

    def loss(self, batch: Tensor) -> Float[Tensor, ""]:
        self._stop(not self.stop_within_step)
        total = torch.zeros(())
        for site in self.sites:
            a, b = self._factors(site)
            total = (
                total
                + (b @ a - batch[0] * torch.cos(torch.arange(a.shape[1]) * batch[1])).square().sum()
            )
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        del optimizer
        self._stop(self.stop_within_step)

    def distance(self) -> float:
        """Of all updates from the matrix of the last batch, at another place than zero."""
        factors = self.factors()
        return float(sum(factor.square().sum() for factor in factors))

    def _stop(self, here: bool) -> None:
        if here and self.stop_at == len(self.losses):
            raise self.kind


BATCHES = [torch.tensor([0.1 + 0.01 * place, float(place)]) for place in range(STEPS)]


@pytest.fixture
def make(
    pico_target: BaseModel, nothing: Callable[..., LoraAdapter]
) -> Iterator[Callable[..., Pulled]]:
    students: list[Pulled] = []

    def made(**options: Any) -> Pulled:
        for student in students:
            student.close()
        start = nothing(pico_target, rank=2, roles=(Role.Q,))
        students.append(Pulled(pico_target, start, **options))
        return students[-1]

    yield made
    for student in students:
        student.close()


def outcome(student: Pulled, course: Course) -> tuple[str, dict[str, Any]]:
    facts = asdict(course)
    del facts["seconds"]
    return student.adapter().content_hash(), facts


def trained(student: Pulled, folder: Path | None = None, **options: Any) -> Any:
    return outcome(
        student, train_student(student, BATCHES, folder, measure=student.distance, **options)
    )


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("stop_at", [0, 1, 5, STEPS - 1])
def test_stopped_training_goes_on_and_ends_in_the_same_bits(
    make: Callable[..., Pulled], tmp_path: Path, stop_at: int, kind: type[BaseException]
) -> None:
    expected = trained(make())
    student = make()
    student.stop_at, student.kind = stop_at, kind
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(kind):
        trained(student, tmp_path / "work")
    assert signal.getsignal(signal.SIGINT) == handler
    state = torch.load(tmp_path / "work/state.pt", weights_only=True)
    assert len(state["course"]["losses"]) == stop_at

    again = make()
    told: list[int] = []
    found = trained(again, tmp_path / "work", progress=lambda step, done, total: told.append(done))
    assert told == list(range(stop_at, STEPS + 1))
    assert found == expected
    assert not (tmp_path / "work").exists()


def test_what_is_stopped_within_a_step_loses_no_more_than_since_the_last_save(
    make: Callable[..., Pulled], tmp_path: Path
) -> None:
    expected = trained(make())
    for save_seconds, kept in ((0.0, 5), (1000.0, None)):
        student = make()
        student.stop_at, student.stop_within_step = 6, True
        with pytest.raises(KeyboardInterrupt):
            trained(student, tmp_path / "work", save_seconds=save_seconds)
        if kept is None:
            assert not (tmp_path / "work/state.pt").exists()
        else:
            state = torch.load(tmp_path / "work/state.pt", weights_only=True)
            assert len(state["course"]["losses"]) == kept
        assert trained(make(), tmp_path / "work") == expected


def test_killed_training_goes_on_from_what_was_saved_last(
    make: Callable[..., Pulled], tmp_path: Path
) -> None:
    expected = trained(make())

    def copied(_step: str, done: int, _total: int) -> None:
        if done == 4:  # saved behind step 3
            shutil.copytree(tmp_path / "work", tmp_path / "killed")

    trained(make(), tmp_path / "work", progress=copied, save_seconds=0.0)
    assert trained(make(), tmp_path / "killed") == expected


def test_killed_behind_the_last_step_it_has_nothing_left_to_do(
    make: Callable[..., Pulled], tmp_path: Path
) -> None:
    expected = trained(make())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        trained(make(), tmp_path / "work", save_seconds=0.0)
    again = make()
    again.stop_at = STEPS  # would raise in any further step
    assert trained(again, tmp_path / "work") == expected


def test_damaged_state_is_not_used(make: Callable[..., Pulled], tmp_path: Path) -> None:
    expected = trained(make())
    (tmp_path / "work").mkdir()
    (tmp_path / "work/state.pt").write_bytes(b"damaged")
    assert trained(make(), tmp_path / "work") == expected


def test_best_weights_of_evenly_spread_checks_are_kept(make: Callable[..., Pulled]) -> None:
    values = iter([3.0, 2.0, 1.0, 2.0, 4.0])
    at: dict[int, list[Tensor]] = {}
    student = make()

    def measure() -> float:
        assert not student.network.training
        assert not torch.is_grad_enabled()
        at[len(student.losses)] = student.factors()
        return next(values)

    course = train_student(student, BATCHES, measure=measure)
    assert course.measured == {0: 3.0, 2: 2.0, 4: 1.0, 6: 2.0, 8: 4.0}
    assert (course.best_step, course.steps) == (4, STEPS)
    assert all(map(torch.equal, student.factors(), at[4]))
    assert not all(map(torch.equal, student.factors(), at[8]))
    assert student.network.training, "measuring leaves it as it was"


def test_start_is_kept_where_nothing_is_better(make: Callable[..., Pulled]) -> None:
    student = make()
    before = student.adapter().content_hash()
    course = train_student(student, BATCHES, measure=lambda: 1.0, start_value=1.0, checks=2)
    assert (course.best_step, course.measured) == (0, {0: 1.0, 4: 1.0, 8: 1.0})
    assert student.adapter().content_hash() == before


@pytest.mark.parametrize("options", [{}, {"measure": lambda: 0.0, "checks": 0}])
def test_last_weights_are_kept_where_nothing_is_measured(
    make: Callable[..., Pulled], options: dict[str, Any]
) -> None:
    student = make()
    before = student.adapter().content_hash()
    course = train_student(student, BATCHES, **options)
    assert (course.best_step, course.measured) == (STEPS, {})
    assert student.adapter().content_hash() != before


def test_learning_rate_follows_the_whole_schedule_also_when_resumed(
    pico_target: BaseModel, nothing: Callable[..., LoraAdapter], tmp_path: Path
) -> None:
    rates: list[float] = []
    start = nothing(pico_target, rank=2, roles=(Role.Q,))

    class Recorded(Pulled):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    for stop_at in (3, None):
        with closing(Recorded(pico_target, start, lr=1.0, warmup_steps=2)) as student:
            student.stop_at = stop_at
            try:
                train_student(student, BATCHES, tmp_path / "work")
            except KeyboardInterrupt:
                assert stop_at == 3
    assert rates == pytest.approx([0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_gradients_are_clipped(pico_target: BaseModel, nothing: Callable[..., LoraAdapter]) -> None:
    norms: list[float] = []

    class Recorded(Pulled):
        def optimizer_step(self, *args: Any, **options: Any) -> None:
            super().optimizer_step(*args, **options)
            grads = [p.grad for group in args[2].param_groups for p in group["params"]]
            norms.append(float(torch.stack([g.norm() for g in grads]).norm()))

    with closing(Recorded(pico_target, nothing(pico_target, rank=2, roles=(Role.Q,)))) as student:
        train_student(student, [batch * 50 for batch in BATCHES])
    assert norms == pytest.approx([1.0] * STEPS, rel=1e-4)


def test_no_batches_leave_the_start(make: Callable[..., Pulled]) -> None:
    student = make()
    before = student.adapter().content_hash()
    course = train_student(student, [], measure=student.distance)
    assert (course.steps, course.best_step) == (0, 0)
    assert student.adapter().content_hash() == before
