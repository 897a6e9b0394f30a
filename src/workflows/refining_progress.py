"""What a refinement shows while it works."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..refinement.base import Progress
from .shown_bars import shown_bars


@contextmanager
def refining_progress() -> Iterator[Progress]:
    """Show a bar for each thing that is done, how far it is, and how long the rest takes."""
    with shown_bars() as shown:
        bars = {"": shown.add_task("loading models", total=None)}

        def tell(step: str, done: int, total: int) -> None:
            if step not in bars:
                # What came before is over; a bar of its own has a time of its own.
                for bar in bars.values():
                    shown.update(bar, visible=False)
                bars[step] = shown.add_task(step, total=total)
            shown.update(bars[step], completed=done, total=total, visible=True)

        yield tell
