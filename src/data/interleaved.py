"""Several sources of texts as one."""

import random
from collections.abc import Iterator, Sequence

from ..exceptions import ConfigurationError
from .text_source import TextSource


class Interleaved:
    """The texts of several sources, drawn from them in a seeded order until all are at their end.

    Args:
        sources: The sources.
        shares: How much of what is drawn comes from each, as long as it has texts left; None for
            equal shares.
        seed: Of the order.

    Raises:
        ConfigurationError: there is no source, or the shares are not one positive number each.
    """

    def __init__(
        self,
        sources: Sequence[TextSource],
        shares: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        self.sources, self.seed = tuple(sources), seed
        self.shares = tuple(shares) if shares is not None else (1.0,) * len(self.sources)
        if not self.sources or len(self.shares) != len(self.sources) or min(self.shares) <= 0:
            raise ConfigurationError(
                f"{len(self.sources)} sources of texts are interleaved by the shares "
                f"{list(self.shares)}, but it takes at least one source, and a positive share each"
            )

    def texts(self, split: str) -> Iterator[str]:
        """Yield the texts of the split, of each source in its own order.

        Raises:
            DataError: as the sources do.
        """
        draw = random.Random(f"interleaved {self.seed} {split}")
        streams = [source.texts(split) for source in self.sources]
        shares = list(self.shares)
        while streams:
            (place,) = draw.choices(range(len(streams)), shares)
            text = next(streams[place], None)
            if text is None:
                del streams[place], shares[place]
            else:
                yield text
