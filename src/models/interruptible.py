"""Stopping Lightning's trainer as any other work is stopped."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import SIGTERMException


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt where the trainer would end the process without a word.

    Raises:
        KeyboardInterrupt: the work was stopped, at the keyboard or by the system.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if isinstance(end, SIGTERMException) or isinstance(end.__context__, KeyboardInterrupt):
            # The trainer ignores further signals from then on.
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
        raise
