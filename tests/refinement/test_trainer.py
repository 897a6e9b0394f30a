import math
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

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.exceptions import AdapterError
from loraport.models import BaseModel, LoraFineTuning
from loraport.refinement.trainer import Student, TrainingResult, train_student

Q, DOWN = Site(0, Role.Q), Site(1, Role.DOWN)


class Copying(Student):
    """Learns to predict each next byte of the batch's rows."""

    def loss(self, batch: Tensor) -> Float[Tensor, ""]:
        logits = self.base.network(input_ids=batch, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def rows(count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(2, 250, (3, 9), generator=generator) for _ in range(count)]


def trained(base: BaseModel, start: LoraAdapter, **options: Any) -> LoraAdapter:
    with closing(Copying(base, start, **options)) as student:
        train_student(student, rows())
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


def test_start_from_nothing_is_a_fresh_draw(
    pico_target: BaseModel, nothing: Callable[..., LoraAdapter]
) -> None:
    with closing(Copying(pico_target, nothing(pico_target), seed=3)) as student:
        found = student.adapter()
    with closing(LoraFineTuning(pico_target, roles=tuple(Role), init_seed=3)) as tuning:
        expected = tuning.adapter()
    assert found.content_hash() == expected.content_hash()
    assert {update.scale for update in found.values()} == {2.0}


def test_start_is_kept_with_its_sites_and_ranks(
    pico_target: BaseModel, uneven: LoraAdapter
) -> None:
    with closing(Copying(pico_target, uneven)) as student:
        found = student.adapter()
    assert {site: update.rank for site, update in found.items()} == {Q: 2, DOWN: 5}
    assert relative_error(found, uneven) < 1e-6
    assert {factor.dtype for u in found.values() for factor in (u.A, u.B)} == {torch.float32}


def test_start_has_the_size_of_a_fresh_draw_whatever_its_own_was(
    pico_target: BaseModel, uneven: LoraAdapter
) -> None:
    with closing(Copying(pico_target, uneven)) as student:
        found = student.adapter()
    norms = torch.cat([update.A.norm(dim=1) for update in found.values()])
    assert torch.allclose(norms[[0, 1, 2, 3, 4]], torch.tensor(1 / math.sqrt(3)))
    # Two rows of the other site are not needed: they are drawn, and do nothing.
    assert ((norms[5:] - 1 / math.sqrt(3)).abs() < 0.15).all()
    assert (found[DOWN].B[:, 3:] == 0).all()
    assert (found[DOWN].B[:, :3] != 0).any(dim=0).all()


def test_gauge_of_the_start_does_not_change_what_is_learned(
    pico_target: BaseModel, uneven: LoraAdapter
) -> None:
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


def test_rank_beyond_the_width_of_the_module_is_filled_up(pico_target: BaseModel) -> None:
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


def test_base_network_is_itself_again_afterwards(
    pico_target: BaseModel, uneven: LoraAdapter
) -> None:
    before = {name: value.clone() for name, value in pico_target.network.state_dict().items()}
    modules = list(pico_target.network.modules())
    trained(pico_target, uneven)
    after = pico_target.network.state_dict()
    assert list(pico_target.network.modules()) == modules
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in pico_target.network.parameters())
    assert not pico_target.network.training


def test_same_seed_gives_the_same_bits(
    pico_target: BaseModel, nothing: Callable[..., LoraAdapter]
) -> None:
    start = nothing(pico_target, roles=(Role.Q, Role.V))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = trained(pico_target, start, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
    torch.manual_seed(2)
    assert trained(pico_target, start, seed=5).content_hash() == first.content_hash()
    assert trained(pico_target, start, seed=6).content_hash() != first.content_hash()


def test_adapter_of_another_model_is_refused(
    pico_target: BaseModel, pico_source: BaseModel, nothing: Callable[..., LoraAdapter]
) -> None:
    with pytest.raises(AdapterError, match=r"pico/target has .* map the adapter"):
        Copying(pico_target, nothing(pico_source))


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


def outcome(student: Pulled, result: TrainingResult) -> tuple[str, dict[str, Any]]:
    facts = asdict(result)
    del facts["seconds"]
    return student.adapter().content_hash(), facts


def trained_student_training(student: Pulled, folder: Path | None = None, **options: Any) -> Any:
    return outcome(
        student, train_student(student, BATCHES, folder, measure=student.distance, **options)
    )


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("stop_at", [0, 1, 5, STEPS - 1])
def test_stopped_training_goes_on_and_ends_in_the_same_bits(
    make: Callable[..., Pulled], tmp_path: Path, stop_at: int, kind: type[BaseException]
) -> None:
    expected = trained_student_training(make())
    student = make()
    student.stop_at, student.kind = stop_at, kind
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(kind):
        trained_student_training(student, tmp_path / "work")
    assert signal.getsignal(signal.SIGINT) == handler
    state = torch.load(tmp_path / "work/state.pt", weights_only=True)
    assert len(state["course"]["losses"]) == stop_at

    again = make()
    told: list[int] = []
    found = trained_student_training(
        again, tmp_path / "work", progress=lambda step, done, total: told.append(done)
    )
    assert told == list(range(stop_at, STEPS + 1))
    assert found == expected
    assert not (tmp_path / "work").exists()


def test_what_is_stopped_within_a_step_loses_no_more_than_since_the_last_save(
    make: Callable[..., Pulled], tmp_path: Path
) -> None:
    expected = trained_student_training(make())
    for save_seconds, kept in ((0.0, 5), (1000.0, None)):
        student = make()
        student.stop_at, student.stop_within_step = 6, True
        with pytest.raises(KeyboardInterrupt):
            trained_student_training(student, tmp_path / "work", save_seconds=save_seconds)
        if kept is None:
            assert not (tmp_path / "work/state.pt").exists()
        else:
            state = torch.load(tmp_path / "work/state.pt", weights_only=True)
            assert len(state["course"]["losses"]) == kept
        assert trained_student_training(make(), tmp_path / "work") == expected


def test_killed_training_goes_on_from_what_was_saved_last(
    make: Callable[..., Pulled], tmp_path: Path
) -> None:
    expected = trained_student_training(make())

    def copied(_step: str, done: int, _total: int) -> None:
        if done == 4:  # saved behind step 3
            shutil.copytree(tmp_path / "work", tmp_path / "killed")

    trained_student_training(make(), tmp_path / "work", progress=copied, save_seconds=0.0)
    assert trained_student_training(make(), tmp_path / "killed") == expected


def test_killed_behind_the_last_step_it_has_nothing_left_to_do(
    make: Callable[..., Pulled], tmp_path: Path
) -> None:
    expected = trained_student_training(make())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        trained_student_training(make(), tmp_path / "work", save_seconds=0.0)
    again = make()
    again.stop_at = STEPS  # would raise in any further step
    assert trained_student_training(again, tmp_path / "work") == expected


def test_damaged_state_is_not_used(make: Callable[..., Pulled], tmp_path: Path) -> None:
    expected = trained_student_training(make())
    (tmp_path / "work").mkdir()
    (tmp_path / "work/state.pt").write_bytes(b"damaged")
    assert trained_student_training(make(), tmp_path / "work") == expected


def test_best_weights_of_evenly_spread_checks_are_kept(make: Callable[..., Pulled]) -> None:
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


def test_start_is_kept_where_nothing_is_better(make: Callable[..., Pulled]) -> None:
    student = make()
    before = student.adapter().content_hash()
    result = train_student(student, BATCHES, measure=lambda: 1.0, start_value=1.0, checks=2)
    assert (result.best_step, result.measured) == (0, {0: 1.0, 4: 1.0, 8: 1.0})
    assert student.adapter().content_hash() == before


@pytest.mark.parametrize("options", [{}, {"measure": lambda: 0.0, "checks": 0}])
def test_last_weights_are_kept_where_nothing_is_measured(
    make: Callable[..., Pulled], options: dict[str, Any]
) -> None:
    student = make()
    before = student.adapter().content_hash()
    result = train_student(student, BATCHES, **options)
    assert (result.best_step, result.measured) == (STEPS, {})
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
    result = train_student(student, [], measure=student.distance)
    assert (result.steps, result.best_step) == (0, 0)
    assert student.adapter().content_hash() == before
