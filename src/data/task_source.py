"""What every source of tasks can do: a folder, the hub, a generator."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ..exceptions import DataError
from .tasks import Task


@runtime_checkable
class TaskSource(Protocol):
    """Anything that tasks can be loaded from: a folder, the hub, a generator."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all tasks that there are."""
        ...

    def load(self, names: Sequence[str] | None = None) -> dict[str, Task]:
        """Return the named tasks in the order asked for; ``None`` asks for all."""
        ...


def refuse_unknown(wanted: Sequence[str], known: Sequence[str], holder: str) -> None:
    """Refuse names that are not among the known ones.

    Raises:
        DataError: naming the unknown names, ``holder``, and every name that it knows.
    """
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise DataError(
            f"unknown task{'s' if len(unknown) > 1 else ''} {', '.join(map(str, unknown))}: "
            f"{holder} has {', '.join(known)}; correct tasks.names or tasks.held_out"
        )
