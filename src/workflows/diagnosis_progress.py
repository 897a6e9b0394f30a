"""What a diagnosis shows while it works."""

from collections.abc import Iterator
from contextlib import contextmanager

from .probe_states import Progress
from .shown_bars import shown_bars


@contextmanager
def diagnosis_progress() -> Iterator[Progress]:
    """Show what is being done, how far it is, and how long the rest takes."""
    with shown_bars() as progress:
        bar = progress.add_task("loading models", total=None)

        def told(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        yield told
