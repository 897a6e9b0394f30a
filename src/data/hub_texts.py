"""Texts of a data set of the Hugging Face hub, streamed or downloaded."""

from collections.abc import Iterator
from typing import Any

from ..exceptions import DataError
from .text_source import VALIDATION_SHARE, check_split, encodable, split_of


class HubTexts:
    """One column of a data set; a row is a document, and its hash decides the split.

    Both splits are drawn from the same split of the hub, in its order. Empty rows are left out.

    Args:
        name: The data set's id, or a local folder that ``datasets`` can load.
        config: The data set's configuration; None for its only one.
        split: The hub's split that texts are read from.
        field: The column that holds the text.
        streaming: Read row by row over the network instead of downloading all first.
        revision: Branch or commit of the data set; None for the main branch.
        validation_share: Share of the rows that is validation.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        split: str = "train",
        field: str = "text",
        *,
        streaming: bool = True,
        revision: str | None = None,
        validation_share: float = VALIDATION_SHARE,
    ) -> None:
        self.name, self.config, self.split, self.field = name, config, split, field
        self.streaming, self.revision = streaming, revision
        self.validation_share = validation_share

    def texts(self, split: str) -> Iterator[str]:
        """Yield the rows' texts that belong to ``train`` or ``validation``.

        Raises:
            DataError: there is no such split, the data set cannot be reached, or it has no such
                column.
        """
        check_split(split)
        for row in self._rows():
            text = row.get(self.field)
            if not isinstance(text, str):
                raise DataError(
                    f"{self._what} has no column {self.field!r} with strings, but the columns "
                    f"{', '.join(row)}; correct corpus.field"
                )
            text = encodable(text).strip()
            if text and split_of(text, self.validation_share) == split:
                yield text

    @property
    def _what(self) -> str:
        return f"the data set {self.name} ({self.config or 'default'}, split {self.split})"

    def _rows(self) -> Iterator[dict[str, Any]]:
        import datasets  # here, because it takes a second and only this source needs it

        try:
            yield from datasets.load_dataset(
                self.name,
                self.config,
                split=self.split,
                revision=self.revision,
                streaming=self.streaming,
            )
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise DataError(
                f"{self._what} could not be read from the Hugging Face hub: {reason}; if there is "
                "no network, take corpus=folder with paths.corpus=DIR, a folder of *.txt or *.jsonl"
            ) from error
