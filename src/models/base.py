"""Base models as values, and what every way of loading one has in common."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .sites import SiteTable
from .weights import StreamedWeights


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A causal language model that adapters are made for.

    Attributes:
        name: The hub id that adapters for it carry as ``base_model_name_or_path``.
        network: In evaluation mode; none of its parameters takes a gradient.
        tokenizer: A fast tokenizer with a padding token.
        fingerprint: SHA-256 (or the hub's commit) of what determines weights and tokenizer.
    """

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    @classmethod
    def frozen(
        cls,
        name: str,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        fingerprint: str,
    ) -> "BaseModel":
        """Return a base model whose network is switched to evaluation and takes no gradient.

        A tokenizer without a padding token gets the end-of-text token for it: padding is always
        masked, so that its token has no influence. A dtype other than float32 becomes part of
        the fingerprint, as it changes every score.
        """
        network.eval()
        network.requires_grad_(False)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if network.dtype != torch.float32:
            fingerprint = f"{fingerprint}-{str(network.dtype).removeprefix('torch.')}"
        return cls(name, network, tokenizer, fingerprint)

    def converted(self, dtype: torch.dtype) -> "BaseModel":
        """Return the model with a copy of its network that computes in a dtype; itself if it does.

        A CPU with matrix units for bfloat16 trains with it about twice as fast as in float32.
        """
        if self.network.dtype == dtype:
            return self
        network = copy.deepcopy(self.network)
        # Not network.to(dtype): buffers such as the frequencies of positions are to stay exact.
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype)
        return BaseModel.frozen(self.name, network, self.tokenizer, self.fingerprint)

    @cached_property
    def sites(self) -> SiteTable:
        """The modules that LoRA can adapt.

        Raises:
            ModelError: the architecture has no site table.
        """
        return SiteTable.of(self.network.config)


class ModelSource(Protocol):
    """One way to get a base model, as a pair's YAML names it."""

    @property
    def name(self) -> str:
        """The name that the loaded :class:`BaseModel` will have."""
        ...

    def load(self, cache: Path) -> BaseModel:
        """Return the base model; what had to be built for it is kept under ``cache``.

        Raises:
            ModelError: it cannot be found or read; the message says what to do.
        """
        ...

    def weights(self, cache: Path) -> StreamedWeights:
        """Open the model's weights on disk, without loading them.

        Raises:
            ModelError: it cannot be found or read; the message says what to do.
        """
        ...
