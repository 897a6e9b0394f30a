"""Base models: what a copy in another dtype is."""

import torch

from loraport.models import BaseModel


def test_converted_copy_computes_in_its_dtype_and_leaves_the_model_alone(
    pico_target: BaseModel,
) -> None:
    ids = torch.tensor([[1, 40, 50, 60]])
    exact = pico_target.network(input_ids=ids).logits
    copy = pico_target.converted(torch.bfloat16)
    rounded = copy.network(input_ids=ids).logits
    assert rounded.dtype == torch.bfloat16
    assert copy.fingerprint == f"{pico_target.fingerprint}-bfloat16"
    assert 0 < float((rounded.float() - exact).norm() / exact.norm()) < 0.05
    assert torch.equal(pico_target.network(input_ids=ids).logits, exact)


def test_positions_of_a_converted_copy_stay_exact(pico_target: BaseModel) -> None:
    copy = pico_target.converted(torch.bfloat16)
    for (name, buffer), (_, kept) in zip(
        pico_target.network.named_buffers(), copy.network.named_buffers(), strict=True
    ):
        assert torch.equal(buffer, kept), name


def test_model_that_has_the_dtype_is_its_own_copy(pico_target: BaseModel) -> None:
    assert pico_target.converted(torch.float32) is pico_target
