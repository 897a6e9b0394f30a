"""Keeping libraries from talking over the tables and progress bars of a run."""

import logging
import warnings

from datasets.utils.logging import disable_progress_bar
from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Silence tips, bars and notices that no user of a command can act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bar()
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",  # torch 2.13 deprecates what Lightning 2.6 calls
        ".*returned `None`, this fit will run with no optimizer.*",
        ".*`IterableDataset` has `__len__` defined.*",  # of one process it is right
        ".*isinstance.treespec.*",
        ".*exists and is not empty.*",
        ".*nn.functional.all_gather is deprecated.*",  # likewise
        ".*Total length of `list` across ranks is zero.*",
        ".*You passed in a `val_dataloader` but have no `validation_step`.*",
        ".*GPU available but not used.*",
    ):
        warnings.filterwarnings("ignore", message)
