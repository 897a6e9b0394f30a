from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig

from loraport.models import ARCHITECTURES, BaseModel, last_logits
from loraport.models.likelihood import LabelTree, attention_masks, behind_prompts


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


def test_tree_shares_what_labels_begin_with_and_leaves_out_their_last_tokens() -> None:
    tree = LabelTree.of([[5, 6, 7], [5, 6, 8], [5, 9], [4]])
    assert tree.tokens == (5, 6)
    assert tree.parents == (-1, 0)
    assert tree.depths().tolist() == [1, 2]
    assert tree.ancestry().tolist() == [[True, False], [True, True]]


def test_label_that_another_one_begins_with_keeps_its_own_likelihood() -> None:
    tree = LabelTree.of([[1], [1, 2]])
    logits = torch.tensor([[[0.0, 2.0, 0.0], [0.0, 0.0, 3.0]]])
    first, second = tree.log_likelihoods(logits)[0].tolist()
    steps = logits.log_softmax(dim=-1)[0]
    assert first == pytest.approx(float(steps[0, 1]))
    assert second == pytest.approx(float(steps[0, 1] + steps[1, 2]))


NESTED = (
    ([[1], [1, 2]], {0: [1]}),
    ([[1], [1, 2, 0]], {0: [1]}),
    ([[1], [1, 2], [1, 2, 0], [3]], {0: [1], 1: [2]}),
    ([[1], [1, 2, 0], [1, 2, 3], [1, 4]], {0: [1, 2, 3]}),
    ([[2, 1, 0], [2, 1], [2, 1, 0, 3, 3]], {1: [0], 0: [2]}),
)


@pytest.mark.parametrize(("labels", "longer"), NESTED)
def test_a_label_that_begins_others_is_the_answer_where_none_of_those_is(
    labels: list[list[int]], longer: dict[int, list[int]]
) -> None:
    """Its probability is that of its beginning, less those of the nearest labels it begins."""
    tree = LabelTree.of(labels, exclusive=True)
    shape = (7, 1 + tree.size, 5)
    logits = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    begun = LabelTree.of(labels).log_likelihoods(logits.double()).double().exp()
    wanted = begun.clone()
    for label, others in longer.items():
        wanted[:, label] -= begun[:, others].sum(dim=1)
    torch.testing.assert_close(
        tree.log_likelihoods(logits).exp().double(), wanted, rtol=1e-4, atol=1e-6
    )
    assert float(wanted.sum(dim=1).max()) < 1


def test_a_model_that_always_says_the_longer_label_leaves_the_shorter_one_a_finite_score() -> None:
    tree = LabelTree.of([[1], [1, 2]], exclusive=True)
    logits = torch.tensor([[[0.0, 2.0, 0.0], [0.0, 0.0, 80.0]]], requires_grad=True)
    found = tree.log_likelihoods(logits)
    assert found[0, 1] > found[0, 0] > -100
    found[0, 0].backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_labels_of_which_none_begins_another_have_the_same_bits() -> None:
    labels = [[1, 2, 3], [1, 2, 4], [0], [2, 2]]
    one, other = LabelTree.of(labels), LabelTree.of(labels, exclusive=True)
    assert one == other
    logits = torch.randn(9, 1 + one.size, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(one.log_likelihoods(logits), other.log_likelihoods(logits))


def test_nodes_stand_behind_their_own_prompt_and_do_not_see_other_branches() -> None:
    tree = LabelTree.of([[5, 6], [7, 8, 9]])
    inputs = behind_prompts(tree, torch.tensor([[0, 3], [3, 4]]), torch.tensor([[0, 1], [1, 1]]))
    assert inputs.input_ids.tolist() == [[0, 3, 5, 7, 8], [3, 4, 5, 7, 8]]
    assert inputs.position_ids.tolist() == [[0, 0, 1, 1, 2], [0, 1, 2, 2, 3]]
    assert inputs.sees[0].int().tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 1, 0, 1, 1],
    ]


def test_sliding_window_cuts_by_position() -> None:
    tree = LabelTree.of([[5, 6], [7, 8, 9]])
    inputs = behind_prompts(tree, torch.tensor([[3, 4]]), torch.tensor([[1, 1]]))
    config = AutoConfig.for_model(
        "gemma3_text", num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"]
    )
    config.sliding_window = 2
    masks = attention_masks(inputs, config, torch.float32, torch.device("cpu"))
    assert isinstance(masks, dict)
    full, near = (masks[kind][0, 0] == 0 for kind in ("full_attention", "sliding_attention"))
    assert torch.equal(full, inputs.sees[0])
    assert near.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
