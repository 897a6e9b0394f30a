"""Sources of generic text: folders, the hub, mixtures of sources; each has two splits."""

import hashlib
import json
import random
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from ..exceptions import ConfigurationError, DataError
from ..files import reading

TRAIN, VALIDATION = SPLITS = ("train", "validation")
"""The splits of every source: what is learned from, and other documents to choose and stop by."""

VALIDATION_SHARE = 0.1
"""The share of documents that is validation where a source does not say itself which are."""


@runtime_checkable
class TextSource(Protocol):
    """Anything that texts can be read from, always the same ones in the same order."""

    def texts(self, split: str) -> Iterator[str]:
        """Yield the texts of ``train`` or ``validation``; no document is in both.

        Raises:
            DataError: there is no such split, or what the texts are in cannot be read.
        """
        ...


def check_split(split: str) -> None:
    """Raise DataError for a split that no source has."""
    if split not in SPLITS:
        raise DataError(f"texts have no split {split!r}, but {' and '.join(SPLITS)}; ask for one")


def split_of(document: str, validation_share: float = VALIDATION_SHARE) -> str:
    """Return the split of a document by its SHA-256: the same wherever and whenever it occurs."""
    digest = hashlib.sha256(document.encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    return VALIDATION if drawn < validation_share else TRAIN


def cut_at_word(text: str, chars: int) -> str:
    """Cut the text at the last white space before so many characters, or there if it has none.

    >>> cut_at_word("one two three", 9)
    'one two'
    """
    if len(text) <= chars:
        return text
    if text[chars].isspace():
        return text[:chars].rstrip() or text[:chars]
    head = text[:chars]
    word = len(head) - len(head.split()[-1]) if head.split() and not head[-1].isspace() else chars
    return head[:word].rstrip() or head


def encodable(text: str) -> str:
    """Return the text with ``?`` for lone surrogates, which no tokenizer takes."""
    return text.encode(errors="replace").decode()


_SUFFIXES = (".txt", ".jsonl")
_WANTED = (
    "set paths.corpus to a folder with train.txt and validation.txt (a text a line) or *.jsonl "
    '(rows {"text": ...}), or to one such file'
)


class CorpusFolder:
    """Texts a line: plain in ``*.txt``, the field ``text`` of a row in ``*.jsonl``.

    ``train.txt`` and ``validation.txt`` beside each other are the split's own. Of every other
    file each line is a document, and its hash decides which split it belongs to. All lines are
    shuffled together, so that the first ones are of all files; only their offsets are in memory.
    Empty lines are left out.

    Args:
        folder: The folder, or one file.
        seed: Of the shuffle.
        validation_share: Share of the documents without a split of their own that is validation.

    Raises:
        DataError: no folder or file is there or named, or the folder holds no such file.
    """

    def __init__(
        self,
        folder: str | Path | None,
        seed: int = 0,
        validation_share: float = VALIDATION_SHARE,
    ) -> None:
        if folder is None:
            raise DataError(f"a corpus of texts is needed, but none is named; {_WANTED}")
        self.folder = Path(folder).expanduser()
        self.seed, self.validation_share = seed, validation_share
        self.files = _files(self.folder)

    def texts(self, split: str) -> Iterator[str]:
        """Yield the texts of the split, shuffled by the seed."""
        check_split(split)
        files = [file for file in self.files if self._own_split(file) in (None, split)]
        numbers, starts = array("H"), array("Q")
        for number, file in enumerate(files):
            for start in _line_starts(file):
                numbers.append(number)
                starts.append(start)
        order = list(range(len(starts)))
        random.Random(f"corpus {self.seed} {split}").shuffle(order)
        for line in order:
            file = files[numbers[line]]
            text = _text(file, starts[line])
            own = self._own_split(file)
            if text and (own or split_of(text, self.validation_share)) == split:
                yield text

    def _own_split(self, file: Path) -> str | None:
        """Return the split that the file's name says; None where the texts are split."""
        both = [self.folder / f"{split}.txt" for split in SPLITS]
        if file in both and all(other in self.files for other in both):
            return file.stem
        return None


def _files(folder: Path) -> tuple[Path, ...]:
    if not folder.exists():
        raise DataError(f"the corpus {folder} does not exist; {_WANTED}")
    every = [folder] if folder.is_file() else sorted(folder.iterdir())
    files = tuple(file for file in every if file.suffix in _SUFFIXES)
    if not files:
        raise DataError(f"the corpus {folder} is or holds neither .txt nor .jsonl; {_WANTED}")
    return files


def _line_starts(file: Path) -> Iterator[int]:
    start = 0
    try:
        with file.open("rb") as lines:
            for line in lines:
                yield start
                start += len(line)
    except OSError as error:
        raise DataError(f"the corpus {file} cannot be read: {error.strerror}") from error


def _text(file: Path, start: int) -> str:
    """Return the text of the line that begins at the byte ``start``."""
    with file.open("rb") as lines:
        lines.seek(start)
        line = lines.readline()
    takes = 'UTF-8, and in *.jsonl a row {"text": ...} a line: correct or remove the line'
    with reading(f"{file}, at byte {start}, {line[:60]!r}", takes, DataError):
        # A byte-order mark, which some editors put at the beginning, is no text.
        text = line.decode("utf-8-sig" if start == 0 else "utf-8").strip()
        if text and file.suffix == ".jsonl":
            row = json.loads(text)
            if not isinstance(row["text"], str):
                raise TypeError("its text is no string")
            text = encodable(row["text"]).strip()
        return text


@contextmanager
def reading_hub(what: str, otherwise: str) -> Iterator[None]:
    """Say, where ``datasets`` cannot read a data set, what to do without the hub."""
    import datasets  # here, because it takes a second and only data of the hub need it

    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{what} could not be read from the Hugging Face hub: {reason}; if there is no "
            f"network, {otherwise}"
        ) from error


@dataclass(frozen=True)
class HubTexts:
    """One column of a data set; a row is a document, and its hash decides the split.

    Both splits are drawn from the same split of the hub, in its order. Empty rows are left out.

    Attributes:
        name: The data set's id, or a local folder that ``datasets`` can load.
        config: Its configuration; None for its only one.
        split: The hub's split that texts are read from.
        field: The column that holds the text.
        streaming: Read row by row over the network instead of downloading all first.
        revision: Branch or commit; None for the main branch.
        validation_share: Share of the rows that is validation.
    """

    name: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    streaming: bool = True
    revision: str | None = None
    validation_share: float = VALIDATION_SHARE

    def texts(self, split: str) -> Iterator[str]:
        """Yield the rows' texts that belong to ``train`` or ``validation``.

        Raises:
            DataError: the data set cannot be reached, or has no such column.
        """
        import datasets  # here, because it takes a second and only this source needs it

        check_split(split)
        what = f"the data set {self.name} ({self.config or 'default'}, split {self.split})"
        options = {"revision": self.revision, "streaming": self.streaming}
        with reading_hub(what, "take corpus=folder with paths.corpus=DIR, of *.txt or *.jsonl"):
            for row in datasets.load_dataset(self.name, self.config, split=self.split, **options):
                text = row.get(self.field)
                if not isinstance(text, str):
                    raise DataError(
                        f"{what} has no column {self.field!r} with strings, but the columns "
                        f"{', '.join(row)}; correct corpus.field"
                    )
                text = encodable(text).strip()
                if text and split_of(text, self.validation_share) == split:
                    yield text


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
        """Yield the texts of the split, of each source in its own order."""
        draw = random.Random(f"interleaved {self.seed} {split}")
        streams = [source.texts(split) for source in self.sources]
        shares = list(self.shares)
        while streams:
            (drawn,) = draw.choices(range(len(streams)), shares)
            text = next(streams[drawn], None)
            if text is None:
                del streams[drawn], shares[drawn]
            else:
                yield text
