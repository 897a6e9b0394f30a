"""The bars that workflows show while they work."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def shown_bars(unit: str = "") -> Progress:
    """Return bars with what is done, how far it is, and how long the rest takes.

    They go to standard error, and are gone when the work is done.

    Args:
        unit: What is counted, where the descriptions do not say it.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, remaining" if unit else "remaining"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
