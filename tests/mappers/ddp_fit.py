"""Fits a mapper on two processes of this machine and saves it: run by test_from_anchors.py.

Arguments: the mapper's import path, a zoo's folder, the checkpoint to write.
"""

import sys
from pathlib import Path

from hydra.utils import get_class

from loraport.data import AnchorPairs, Zoo
from loraport.mappers.contract import trained


def main(mapper: str, zoo: str, checkpoint: str) -> None:
    # An odd number of anchors in batches of two: the sampler gives one of them twice.
    data = AnchorPairs(Zoo.open(zoo).read(), ["t00"], batch_size=2)
    path = Path(checkpoint)
    trained(get_class(mapper)(), data, path, max_epochs=1, devices=2, strategy="ddp")


if __name__ == "__main__":
    main(*sys.argv[1:])
