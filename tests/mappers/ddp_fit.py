"""Fits a mapper on two processes of this machine and saves it: run by test_closed_form.py.

Arguments: the mapper's import path, a zoo's folder, the checkpoint to write.
"""

import sys

from hydra.utils import get_class
from lightning import Trainer

from loraport.data import AnchorPairs, Zoo


def main(mapper: str, zoo: str, checkpoint: str) -> None:
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # An odd number of anchors in batches of two: the sampler gives one of them twice.
    data = AnchorPairs(Zoo.open(zoo).read(), ["t00"], batch_size=2)
    trainer.fit(get_class(mapper)(), datamodule=data)
    trainer.save_checkpoint(checkpoint, weights_only=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
