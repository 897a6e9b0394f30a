"""Fits a mapper on text on processes of this machine and saves it: run by test_transport.py.

Arguments: a folder with the models ``source`` and ``target``, the checkpoint to write, and the
number of processes.
"""

import random
import string
import sys
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from loraport.alignment.layer_matching import LayerPairing
from loraport.data import AllEnds, TextCorpus
from loraport.mappers.contract import trained
from loraport.mappers.from_text import ModelPair
from loraport.mappers.transport import TransportMapper
from loraport.models import BaseModel


class Letters:
    """Texts of one length, an even number of batches of them: no batch is given twice."""

    def texts(self, split: str) -> Iterator[str]:
        draw = random.Random(split)
        for _ in range(64):
            yield "".join(draw.choices(string.ascii_letters, k=47))


def load(folder: Path) -> BaseModel:
    network = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return BaseModel.frozen(f"pico/{folder.name}", network, tokenizer, folder.name)


def main(folder: str, checkpoint: str, devices: str) -> None:
    source, target = (load(Path(folder) / side) for side in ("source", "target"))
    data = TextCorpus(
        Letters(),
        source.tokenizer,
        target.tokenizer,
        tokens=10**6,
        held_out_tokens=10**6,
        batch_tokens=8 * 48,
        ends=AllEnds(),
    )
    # One strong ridge: the solve of a weak one magnifies what sums in another order round to.
    mapper = TransportMapper(strengths=[0.1])
    mapper.learn_from(ModelPair(source, target), LayerPairing.one_to_one(2, (0, 0, 1)))
    count = int(devices)
    strategy = "ddp" if count > 1 else "auto"
    trained(mapper, data, Path(checkpoint), max_epochs=1, devices=count, strategy=strategy)


if __name__ == "__main__":
    main(*sys.argv[1:])
