import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from hydra.utils import get_class
from lightning import Trainer
from torch.utils.data import DataLoader, Dataset

from loraport.adapters import relative_error, write_adapter
from loraport.data import AnchorBatch, AnchorPairs, AnchorSet, ZooPairs
from loraport.mappers import load_mapper
from loraport.mappers.global_ridge import GlobalRidgeMapper

pytestmark = [
    # Lightning 2.6 calls what torch 2.13 deprecates.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    # The places of a few anchors need no workers.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    # A closed form has no optimizer, nor does it look at the anchors that are left out.
    pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer.*"),
    pytest.mark.filterwarnings("ignore:.*but have no `validation_step`.*"),
]


def trainer() -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_an_epoch_of_any_batches_fits_on_the_training_anchors(
    batch_size: int, noisy_zoo: ZooPairs
) -> None:
    data = AnchorPairs(noisy_zoo, ["t00"], validation=0.3, batch_size=batch_size)
    mapper, expected = GlobalRidgeMapper(), GlobalRidgeMapper()
    trainer().fit(mapper, datamodule=data)
    left_out = data.validation_anchors
    assert left_out is not None
    assert mapper.report()["anchors"] == [
        name for name in noisy_zoo.source if name not in ("t00", *left_out.names)
    ]
    expected.fit(data.training_anchors)
    query = noisy_zoo.source["t00"]
    assert mapper.map(query).content_hash() == expected.map(query).content_hash()


def test_other_data_is_refused() -> None:
    batches: DataLoader[int] = DataLoader(
        cast("Dataset[int]", range(3)), collate_fn=lambda rows: AnchorBatch(torch.tensor(rows))
    )
    with pytest.raises(RuntimeError, match=r"GlobalRidgeMapper trains on AnchorPairs, not on None"):
        trainer().fit(GlobalRidgeMapper(), batches)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["global_ridge.GlobalRidgeMapper", "pca_ridge.PCARidgeMapper"])
def test_two_devices_fit_what_one_fits(name: str, noisy_zoo: ZooPairs, tmp_path: Path) -> None:
    for side, adapters in (("source", noisy_zoo.source), ("target", noisy_zoo.target)):
        for task, adapter in adapters.items():
            write_adapter(adapter, tmp_path / side / task)
    script, checkpoint = Path(__file__).with_name("ddp_fit.py"), tmp_path / "mapper.ckpt"
    kind = f"loraport.mappers.{name}"
    done = subprocess.run(
        [sys.executable, str(script), kind, str(tmp_path), str(checkpoint)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "MEMBER: 2/2" in done.stderr
    fitted, expected = load_mapper(checkpoint), get_class(kind)()
    expected.fit(AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1:]))
    assert fitted.report() == expected.report()
    query = noisy_zoo.source["t00"]
    assert relative_error(fitted.map(query), expected.map(query)) < 1e-6
