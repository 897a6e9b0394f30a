"""A base model that writes planned answers: tests then know what a suite has to judge."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from loraport.evaluation import written_answers
from loraport.models.generation import NextToken
from loraport.models.loading import BaseModel

Planner = Callable[[BaseModel, Mapping[str, str | Sequence[str]]], list[int]]


@pytest.fixture
def plan_answers(monkeypatch: pytest.MonkeyPatch) -> Planner:
    """Let ``write_answers`` get planned answers; several of a prompt are given in turn.

    What it returns grows by the number of rows of every batch that is asked for.
    """

    def plan(base: BaseModel, answers: Mapping[str, str | Sequence[str]]) -> list[int]:
        left = {prompt: [a] if isinstance(a, str) else list(a) for prompt, a in answers.items()}
        batches: list[int] = []

        def generate(
            asked: BaseModel,
            prompts: Sequence[Sequence[int]],
            *,
            max_new_tokens: int,
            choice: NextToken,
        ) -> list[list[int]]:
            batches.append(len(prompts))
            choice.choose(torch.zeros(len(prompts), asked.network.config.vocab_size))
            written = []
            for row in prompts:
                text = str(base.tokenizer.decode(list(row), skip_special_tokens=True))
                prompt = max((p for p in left if p in text), key=len)
                answer = left[prompt].pop(0) if len(left[prompt]) > 1 else left[prompt][0]
                written.append(base.tokenizer(answer, add_special_tokens=False)["input_ids"])
            return written

        monkeypatch.setattr(written_answers, "generate", generate)
        return batches

    return plan
