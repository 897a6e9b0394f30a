"""What the diagnosis of a pair said, as reports of other commands hold it."""

from .results import Record


class CompatibilityRecord(Record):
    """How much of a pair's target has a counterpart in its source.

    Attributes:
        coverage: Share of the target's layers with a counterpart, calibrated against chance.
        minimum: The coverage that is asked for.
        identification: Share of the layers that their counterparts lead back to.
        rows: Aligned word ends that were compared.
        forced: Whether ``force=true`` overrode too low a coverage.
    """

    coverage: float
    minimum: float
    identification: float
    rows: int
    forced: bool

    @property
    def words(self) -> str:
        """One sentence for cards and consoles."""
        found = (
            f"diagnosis: {self.coverage:.0%} of the target's layers have a counterpart in the "
            f"source, on {self.rows} words"
        )
        if self.forced:
            return (
                f"{found}; at least {self.minimum:.0%} are needed, which force=true overrode: do "
                "not expect this adapter to work"
            )
        return found
