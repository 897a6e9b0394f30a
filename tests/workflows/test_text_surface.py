import torch

from loraport.data.aligned_batch import TokenBatch
from loraport.workflows.text_surface import text_surfaces


def batch(*rows: list[int]) -> TokenBatch:
    ids = torch.tensor(rows)
    return TokenBatch(ids, (ids > 0).long())


def test_the_same_prefix_gives_the_same_row_in_any_batch():
    one = text_surfaces(batch([3, 4, 5, 9]), torch.tensor([2]), seed=0)
    other = text_surfaces(batch([7, 7, 7], [3, 4, 5]), torch.tensor([5]), seed=0)
    for here, there in zip(one, other, strict=True):
        torch.testing.assert_close(here, there)


def test_tokens_in_common_make_rows_alike():
    tokens = batch([3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 7, 9], [11, 12, 13, 14, 15, 9])
    prefix, _, last = (
        torch.nn.functional.normalize(rows, dim=1)
        for rows in text_surfaces(tokens, torch.tensor([5, 11, 17]), seed=0)
    )
    alike = prefix @ prefix.mT
    assert alike[0, 1] > 0.5 > abs(alike[0, 2]) + 0.1
    alike = last @ last.mT
    assert alike[1, 2] > 0.5 > abs(alike[0, 2]) + 0.1


def test_another_seed_draws_other_vectors():
    one, other = (text_surfaces(batch([3, 4]), torch.tensor([1]), seed) for seed in (0, 1))
    assert not torch.allclose(one[0], other[0])
