from collections.abc import Callable

import pytest
import torch

from loraport.models import ARCHITECTURES, BaseModel, last_logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions", [1, 3])
def test_logits_are_the_last_ones_of_the_whole(
    architecture: str, positions: int, pico: Callable[[str], BaseModel]
) -> None:
    network = pico(architecture).network
    ids = torch.arange(2, 42).reshape(2, 20)
    with torch.inference_mode():
        whole = network(input_ids=ids).logits
        last = last_logits(network, positions, input_ids=ids)
    assert last.shape == (2, positions, 260)
    torch.testing.assert_close(last, whole[:, -positions:])


def test_head_reads_one_block_of_memory_and_keeps_no_hook(pico_target: BaseModel) -> None:
    head = pico_target.network.get_output_embeddings()
    seen: list[bool] = []
    watch = head.register_forward_hook(
        lambda _m, inputs, _o: seen.append(inputs[0].is_contiguous())
    )
    last_logits(pico_target.network, 1, input_ids=torch.arange(2, 12).reshape(2, 5))
    watch.remove()
    assert seen == [True]
    assert not head._forward_pre_hooks
