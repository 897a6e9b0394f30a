import errno
import io
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.exceptions import AdapterError, OutputError
from loraport.models import BaseModel, LoraFineTuning
from loraport.refinement.trainer import Student, train_student
from loraport.store import Store, results_first

from .conftest import zero_adapter

Q, DOWN = Site(0, Role.Q), Site(1, Role.DOWN)


class Copying(Student):
    """Learns to predict each next byte of the batch's rows."""

    def loss(self, batch: Tensor) -> Float[Tensor, ""]:
        logits = self.base.network(input_ids=batch, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def trained(base: BaseModel, start: LoraAdapter, **options: Any) -> LoraAdapter:
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randint(2, 250, (3, 9), generator=generator) for _ in range(6)]
    with closing(Copying(base, start, **options)) as student:
        train_student(student, rows)
        return student.adapter()


@pytest.fixture
def uneven(pico_target: BaseModel) -> LoraAdapter:
    """Rank 2 at one site; rank 5, of which 3 are used, and a negative scale at another."""
    generator = torch.Generator().manual_seed(8)
    shapes = pico_target.sites.shapes

    def drawn(site: Site, rank: int, scale: float) -> LowRank:
        out, in_ = shapes[site]
        a = torch.randn(rank, in_, generator=generator)
        return LowRank(a, torch.randn(out, rank, generator=generator), scale)

    down = drawn(DOWN, 5, -0.03)
    b = down.B.clone()
    b[:, 3:] = 0
    updates = {Q: drawn(Q, 2, 0.01), DOWN: LowRank(down.A, b, down.scale)}
    return LoraAdapter(updates, pico_target.name)


def test_start_from_nothing_is_a_fresh_draw(pico_target, start):
    with closing(Copying(pico_target, start, seed=3)) as student:
        found = student.adapter()
    with closing(LoraFineTuning(pico_target, roles=tuple(Role), init_seed=3)) as tuning:
        expected = tuning.adapter()
    assert found.content_hash() == expected.content_hash()
    assert {update.scale for update in found.values()} == {2.0}


def test_start_is_kept_in_the_size_of_a_fresh_draw(pico_target, uneven):
    with closing(Copying(pico_target, uneven)) as student:
        found = student.adapter()
    assert {site: update.rank for site, update in found.items()} == {Q: 2, DOWN: 5}
    assert relative_error(found, uneven) < 1e-6
    assert {factor.dtype for u in found.values() for factor in (u.A, u.B)} == {torch.float32}
    norms = torch.cat([update.A.norm(dim=1) for update in found.values()])
    assert torch.allclose(norms[[0, 1, 2, 3, 4]], torch.tensor(1 / math.sqrt(3)))
    # Two rows of the other site are not needed: they are drawn, and do nothing.
    assert ((norms[5:] - 1 / math.sqrt(3)).abs() < 0.15).all()
    assert (found[DOWN].B[:, 3:] == 0).all()
    assert (found[DOWN].B[:, :3] != 0).any(dim=0).all()


def test_gauge_of_the_start_does_not_change_what_is_learned(pico_target, uneven):
    generator = torch.Generator().manual_seed(1)

    def turned(update: LowRank) -> LowRank:
        mix = torch.eye(update.rank) + 0.3 * torch.randn(
            update.rank, update.rank, generator=generator
        )
        return LowRank(50 * mix @ update.A, update.B @ mix.inverse() / 25, update.scale / 2)

    other = uneven.map(turned)
    assert relative_error(other, uneven) < 1e-5
    one, two = trained(pico_target, uneven), trained(pico_target, other)
    moved = relative_error(one, uneven)
    assert moved > 0.01
    assert relative_error(two, one) < 0.02 * moved


def test_rank_beyond_the_width_of_the_module_is_filled_up(pico_target):
    k = Site(0, Role.K)  # 12 outputs
    out, in_ = pico_target.sites.shapes[k]
    generator = torch.Generator().manual_seed(2)
    wide = LowRank(
        torch.randn(out + 4, in_, generator=generator),
        torch.randn(out, out + 4, generator=generator),
    )
    start = LoraAdapter({k: wide}, pico_target.name)
    with closing(Copying(pico_target, start)) as student:
        found = student.adapter()
    assert found[k].rank == out + 4
    assert relative_error(found, start) < 1e-6
    assert (found[k].A[out:] != 0).any(dim=1).all()


def test_same_seed_gives_the_same_bits(pico_target):
    start = zero_adapter(pico_target, roles=(Role.Q, Role.V))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = trained(pico_target, start, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
    torch.manual_seed(2)
    assert trained(pico_target, start, seed=5).content_hash() == first.content_hash()
    assert trained(pico_target, start, seed=6).content_hash() != first.content_hash()


def test_adapter_of_another_model_is_refused(pico_target, pico_source):
    with pytest.raises(AdapterError, match=r"pico/target has .* map the adapter"):
        Copying(pico_target, zero_adapter(pico_source))


STEPS = 8


class Pulled(Student):
    """Every update is pulled towards a matrix that the batch names; no network is run."""

    stop_at: int | None = None
    stop_in = "loss"
    kind: type[BaseException] = KeyboardInterrupt

    def loss(self, batch: Tensor) -> Float[Tensor, ""]:
        self._stop("loss", len(self.losses))
        total = torch.zeros(())
        for site in self.sites:
            a, b = self._factors(site)
            aim = batch[0] * torch.cos(torch.arange(a.shape[1]) * batch[1])
            total = total + (b @ a - aim).square().sum()
        return total

    def on_after_backward(self) -> None:
        self._stop("backward", len(self.losses) - 1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        del optimizer
        self._stop("step", len(self.losses))

    def size(self) -> float:
        """The sum of the squares of all factors."""
        return float(sum(factor.square().sum() for factor in self.factors()))

    def _stop(self, place: str, steps: int) -> None:
        if (self.stop_in, self.stop_at) == (place, steps):
            raise self.kind


BATCHES = [torch.tensor([0.1 + 0.01 * place, float(place)]) for place in range(STEPS)]


@pytest.fixture
def make(pico_target: BaseModel) -> Iterator[Callable[..., Pulled]]:
    students: list[Pulled] = []

    def made(kind: type[Pulled] = Pulled, **options: Any) -> Pulled:
        for student in students:
            student.close()
        start = zero_adapter(pico_target, rank=2, roles=(Role.Q,))
        students.append(kind(pico_target, start, **options))
        return students[-1]

    yield made
    students[-1].close()


def outcome(student: Pulled, root: Path | None = None, **options: Any) -> Any:
    """Train, and return what comes of it but for the time."""
    result = train_student(
        student, BATCHES, store=Store(root), measure=student.size, measured_on="size", **options
    )
    return student.adapter().content_hash(), replace(result, seconds=0.0)


def saved_steps(root: Path) -> list[int]:
    """Number of steps of each training whose state is kept."""
    steps = []
    for path in root.glob("students/**/*.entry"):
        state = torch.load(io.BytesIO(path.read_bytes().partition(b"\n")[2]), weights_only=True)
        steps.append(len(state["result"]["losses"]))
    return steps


@pytest.mark.parametrize(
    ("kind", "stop_in", "stop_at"),
    [
        *((KeyboardInterrupt, "loss", 0), (RuntimeError, "backward", 1)),
        *((KeyboardInterrupt, "backward", 5), (RuntimeError, "loss", STEPS - 1)),
    ],
)
def test_stopped_training_goes_on_and_ends_in_the_same_bits(make, tmp_path, kind, stop_in, stop_at):
    expected = outcome(make())
    student = make()
    student.stop_at, student.stop_in, student.kind = stop_at, stop_in, kind
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(kind):
        outcome(student, tmp_path)
    assert signal.getsignal(signal.SIGINT) == handler
    assert saved_steps(tmp_path) == [stop_at]
    done: list[int] = []
    again = outcome(make(), tmp_path, progress=lambda _step, steps, _total: done.append(steps))
    assert done == list(range(stop_at, STEPS + 1))
    assert again == expected
    assert saved_steps(tmp_path) == []


@pytest.mark.parametrize(("save_seconds", "kept"), [(0.0, [5]), (1000.0, [])])
def test_what_is_stopped_within_a_step_loses_no_more_than_since_the_last_save(
    make, tmp_path, save_seconds, kept
):
    expected = outcome(make())
    student = make()
    student.stop_at, student.stop_in = 6, "step"
    with pytest.raises(KeyboardInterrupt):
        outcome(student, tmp_path, save_seconds=save_seconds)
    assert saved_steps(tmp_path) == kept
    assert outcome(make(), tmp_path) == expected


def test_killed_training_goes_on_from_what_was_saved_last(make, tmp_path, monkeypatch):
    expected = outcome(make())

    def copied(_step: str, done: int, _total: int) -> None:
        if done == 4:  # the step before it is saved
            shutil.copytree(tmp_path / "work", tmp_path / "killed")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "drop", lambda *_: None)
        outcome(make(), tmp_path / "work", progress=copied, save_seconds=0.0)
    assert saved_steps(tmp_path / "killed") == [3]
    assert outcome(make(), tmp_path / "killed") == expected
    # Killed after the last step it has nothing left to do.
    again = make()
    again.stop_at = STEPS  # would raise in any further step
    assert outcome(again, tmp_path / "work") == expected


def test_state_of_a_finished_training_stays_until_the_result_is_at_its_place(make, tmp_path):
    expected = outcome(make())

    def fail() -> None:
        with results_first():
            assert outcome(make(), tmp_path) == expected
            raise OutputError("the result cannot be written")

    with pytest.raises(OutputError):
        fail()
    assert saved_steps(tmp_path) == [STEPS]
    again = make()
    again.stop_at = 0  # would raise in any step
    with results_first():
        assert outcome(again, tmp_path) == expected
        assert saved_steps(tmp_path) == [STEPS]
    assert saved_steps(tmp_path) == []


def test_state_that_cannot_be_written_is_said_once_and_changes_nothing(
    make, tmp_path, monkeypatch, caplog
):
    expected = outcome(make())

    def full(path: Path, _content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert outcome(make(), tmp_path, save_seconds=0.0) == expected
    (said,) = (record for record in caplog.records if record.name.startswith("loraport"))
    assert "No space left" in said.getMessage()
    assert saved_steps(tmp_path) == []


@pytest.mark.parametrize("options", [{"seed": 1}, {"lr": 0.1}, {"warmup_steps": 1}, {}])
def test_another_training_does_not_go_on_from_it(make, tmp_path, options):
    student = make()
    student.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        outcome(student, tmp_path)
    done: list[int] = []
    others: dict[str, Any] = {} if options else {"checks": 2}
    outcome(make(**options), tmp_path, progress=lambda _, steps, __: done.append(steps), **others)
    assert done[0] == 0
    assert saved_steps(tmp_path) == [5]


def test_best_weights_of_evenly_spread_checks_are_kept(make):
    values = iter([3.0, 2.0, 1.0, 2.0, 4.0])
    at: dict[int, list[Tensor]] = {}
    student = make()

    def measure() -> float:
        assert not student.network.training
        assert not torch.is_grad_enabled()
        at[len(student.losses)] = student.factors()
        return next(values)

    result = train_student(student, BATCHES, measure=measure)
    assert result.measured == {0: 3.0, 2: 2.0, 4: 1.0, 6: 2.0, 8: 4.0}
    assert (result.best_step, result.steps) == (4, STEPS)
    assert all(map(torch.equal, student.factors(), at[4]))
    assert not all(map(torch.equal, student.factors(), at[8]))
    assert student.network.training, "measuring leaves it as it was"


def test_start_is_kept_where_nothing_is_better_and_the_last_where_nothing_is_measured(make):
    student = make()
    before = student.adapter().content_hash()
    result = train_student(student, BATCHES, measure=lambda: 1.0, start_value=1.0, checks=2)
    assert (result.best_step, result.measured) == (0, {0: 1.0, 4: 1.0, 8: 1.0})
    assert student.adapter().content_hash() == before
    result = train_student(make(), [], measure=student.size)
    assert (result.steps, result.best_step) == (0, 0)
    for measure in (None, lambda: 0.0):
        student = make()
        result = train_student(
            student, BATCHES, measure=measure, checks=4 if measure is None else 0
        )
        assert (result.best_step, result.measured) == (STEPS, {})
        assert student.adapter().content_hash() != before


def test_learning_rate_follows_the_whole_schedule_also_when_resumed(make, tmp_path):
    rates: list[float] = []

    class Recorded(Pulled):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    student = make(Recorded, lr=1.0, warmup_steps=2)
    student.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        train_student(student, BATCHES, store=Store(tmp_path))
    train_student(make(Recorded, lr=1.0, warmup_steps=2), BATCHES, store=Store(tmp_path))
    assert rates == pytest.approx([0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_gradients_are_clipped(make):
    norms: list[float] = []

    class Recorded(Pulled):
        def optimizer_step(self, *args: Any, **options: Any) -> None:
            super().optimizer_step(*args, **options)
            grads = [p.grad for group in args[2].param_groups for p in group["params"]]
            norms.append(float(torch.stack([g.norm() for g in grads]).norm()))

    train_student(make(Recorded), [batch * 50 for batch in BATCHES])
    assert norms == pytest.approx([1.0] * STEPS, rel=1e-4)
