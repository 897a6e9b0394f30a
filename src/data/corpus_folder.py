"""Texts of a folder of plain text and JSON Lines, or of one such file."""

import json
import random
from array import array
from collections.abc import Iterator
from pathlib import Path

from ..exceptions import DataError
from .text_source import SPLITS, VALIDATION_SHARE, check_split, encodable, split_of

_SUFFIXES = (".txt", ".jsonl")
_WANTED = (
    "set paths.corpus to a folder with train.txt and validation.txt (a text a line) or *.jsonl "
    '(rows {"text": ...}), or to one such file'
)


class CorpusFolder:
    """Texts a line: plain in ``*.txt``, the field ``text`` of a row in ``*.jsonl``.

    ``train.txt`` and ``validation.txt`` beside each other are the split's own. Of every other
    file each line is a document, and its hash decides which split it belongs to. All lines are
    shuffled together, so that the first ones are of all files; only their places are in memory.
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
        """Yield the texts of the split, shuffled by the seed.

        Raises:
            DataError: there is no such split, a file cannot be read, or a row has no text.
        """
        check_split(split)
        files = [file for file in self.files if self._own_split(file) in (None, split)]
        numbers, starts = array("H"), array("Q")
        for number, file in enumerate(files):
            for start in _line_starts(file):
                numbers.append(number)
                starts.append(start)
        order = list(range(len(starts)))
        random.Random(f"corpus {self.seed} {split}").shuffle(order)
        for place in order:
            file = files[numbers[place]]
            text = _text(file, starts[place])
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
    if folder.is_file():
        if folder.suffix not in _SUFFIXES:
            raise DataError(f"the corpus {folder} is neither .txt nor .jsonl; {_WANTED}")
        return (folder,)
    if not folder.is_dir():
        raise DataError(f"the corpus {folder} does not exist; {_WANTED}")
    files = tuple(file for file in sorted(folder.iterdir()) if file.suffix in _SUFFIXES)
    if not files:
        raise DataError(f"the corpus {folder} holds neither .txt nor .jsonl; {_WANTED}")
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
    where = f"{file}, at byte {start},"
    try:
        text = line.decode().strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 ({error.reason}); convert the file") from error
    if not text or file.suffix == ".txt":
        return text
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is no JSON ({error.msg}); correct or remove the line") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(
            f'{where} has no field "text" with a string, but {text[:60]!r}; a row of a corpus is '
            '{"text": ...}: correct or remove the line'
        )
    return encodable(row["text"]).strip()
