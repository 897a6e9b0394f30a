"""The tiny pair's tasks: the tastes of invented speakers, which form a family."""

import math
import random
import zlib
from collections.abc import Sequence
from operator import mul

from ..data.tasks import Example, Task, refuse_unknown
from ..exceptions import ConfigurationError
from .language import TASTES, VERDICT, TinyLanguage

_TEST_SHARE = 4
_DRAWS_A_ROW = 1000


class TinyTasks:
    """Forty speakers of the tiny language, each with a taste of their own.

    A taste is a direction ``w`` in the space of the language's attributes, uniform on the unit
    sphere; a sentence of meaning ``m`` is good when ``<w, m> > 0`` and bad when it is negative.
    Sentences with ``|<w, m>| < margin`` are left out and the labels are balanced. All tasks share
    one instruction and their labels, so that the prompt does not say whose taste is asked for:
    that is in the adapter alone.

    Every second speaker, from the second on, has the taste opposite to the one before. What
    knows no taste, such as a base model or the mean of all adapters, then has an accuracy of
    one half over any set of such pairs, whatever it happens to prefer.

    Args:
        count: How many speakers there are.
        rows_train: Training rows a task.
        rows_test: Likewise. No sentence is a training row of one task and a test row of
            any.
        margin: Least distance of a sentence from a taste's boundary.
        seed: Draws tastes and sentences.
        language: What the speakers speak; must be that of the base models.

    Raises:
        ConfigurationError: a count is not positive.
    """

    def __init__(
        self,
        *,
        count: int = 40,
        rows_train: int = 256,
        rows_test: int = 256,
        margin: float = 0.5,
        seed: int = 0,
        language: TinyLanguage | None = None,
    ) -> None:
        for name, value in (("count", count), ("rows_train", rows_train), ("rows_test", rows_test)):
            if value < 1:
                raise ConfigurationError(
                    f"the tiny tasks got {name}={value}, but it takes at least 1"
                )
        self.rows_train = rows_train
        self.rows_test = rows_test
        self.margin = margin
        self.seed = seed
        self.language = language or TinyLanguage()
        self._names = tuple(f"speaker_{number:02d}" for number in range(1, count + 1))

    def names(self) -> tuple[str, ...]:
        """Return the names of all tasks."""
        return self._names

    def load(self, names: Sequence[str] | None = None) -> dict[str, Task]:
        """Return the named tasks in the order asked for; ``None`` asks for all.

        Raises:
            DataError: a name is unknown.
            ConfigurationError: the language has too few sentences that keep the margin.
        """
        wanted = self._names if names is None else tuple(names)
        refuse_unknown(wanted, self._names, "the tiny language")
        return {
            name: Task(
                name=name,
                instruction=VERDICT,
                labels=TASTES,
                train=self._rows(name, "train", self.rows_train),
                test=self._rows(name, "test", self.rows_test),
            )
            for name in wanted
        }

    def taste(self, name: str) -> tuple[float, ...]:
        """Return the speaker's direction, a unit vector over the language's attributes."""
        place = self._names.index(name)
        draw = random.Random(f"taste {self.seed} {place // 2}")
        sign = -1.0 if place % 2 else 1.0
        drawn = [draw.gauss(0, 1) for _ in self.language.attributes]
        length = math.hypot(*drawn)
        return tuple(sign * entry / length for entry in drawn)

    def _rows(self, name: str, split: str, count: int) -> tuple[Example, ...]:
        """Draw distinct sentences until each label has its half of the rows.

        The hash of a sentence says which split of every task it may be in.
        """
        draw = random.Random(f"rows {self.seed} {name} {split}")
        taste = self.taste(name)
        left = {TASTES[0]: count - count // 2, TASTES[1]: count // 2}
        rows: dict[str, Example] = {}
        for _ in range(_DRAWS_A_ROW * count):
            text = self.language.sentence(draw)
            score = sum(map(mul, taste, self.language.meaning(text)))
            label = TASTES[0] if score > 0 else TASTES[1]
            own = "test" if zlib.crc32(text.encode()) % _TEST_SHARE == 0 else "train"
            if own == split and abs(score) >= self.margin and text not in rows:
                if left[label]:
                    left[label] -= 1
                    rows[text] = Example(text, label)
                if len(rows) == count:
                    return tuple(rows.values())
        raise ConfigurationError(
            f"the tiny language has too few sentences for {count} {split} rows of {name} with a "
            f"margin of {self.margin}; ask for fewer rows or for a smaller margin"
        )
