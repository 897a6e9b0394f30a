"""A data-free linear map: embeddings of shared tokens stand for activations."""

import math
from collections.abc import Sequence

import torch

from ..adapters import LoraAdapter, LowRank, Role, Site
from ..alignment.transport import HeldOutRidge, transported_reader, transported_writer
from ..exceptions import ConfigurationError
from ..models.taps import INPUT_ROLE
from .pseudo_activations import PseudoActivations
from .shared_tokens import MINIMUM, shared_tokens
from .site_pairs import SitePairs
from .weight_mapper import WeightMapper

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_EVERY = 5
"""One of so many tokens is held out of the choice of a strength."""


class EmbeddingRidgeMapper(WeightMapper):
    """Transports A and B by ridge regression between the models' responses to single tokens.

    Strings that are tokens of both vocabularies are given to each layer alone, as their
    embeddings (:class:`~loraport.mappers.pseudo_activations.PseudoActivations`). The rows of A
    are regressed on the target module's inputs, and the columns of B are carried from the source
    module's outputs to the target's. Near the first layer the embeddings are what a module does
    read; further up they only stand for it.

    Args:
        tokens: Shared strings to use, at most.
        strengths: Ridge strengths to choose among, relative to the mean variance of a
            coordinate; for inputs and outputs of each site the one of least error on a fifth of
            the tokens is taken.

    Raises:
        ConfigurationError: there are too few tokens, or a strength is not positive and finite.

    Source: the embedding-only map after LoRASuite (arXiv 2505.13515), which aligns models by
    parameters that both have; ``alignment.transport``.
    """

    def __init__(self, tokens: int = 2048, strengths: Sequence[float] = STRENGTHS) -> None:
        super().__init__()
        if tokens < MINIMUM:
            raise ConfigurationError(
                f"mapper.tokens is {tokens}; it takes a whole number of at least {MINIMUM}, better "
                "more than the models' width"
            )
        if not strengths or not all(0 < strength < math.inf for strength in strengths):
            raise ConfigurationError(
                f"mapper.strengths is {list(strengths)}; it takes one or more positive finite "
                f"numbers, such as {list(STRENGTHS)}"
            )
        self.tokens = tokens
        self.strengths = tuple(float(strength) for strength in strengths)

    def prepare(self, adapter: LoraAdapter, pairs: SitePairs) -> None:
        """Find the shared tokens, and look up their embeddings.

        Raises:
            ModelError: the vocabularies share too few strings, or a tensor cannot be read.
        """
        pair = self.pair
        source, target = shared_tokens(pair.source, pair.target, self.tokens)
        self._source = PseudoActivations(pair.source, source, pair.device)
        self._target = PseudoActivations(pair.target, target, pair.device)
        places = torch.arange(len(source), device=pair.device)
        self._held_out = places % _EVERY == _EVERY - 1
        self._read: tuple[int, Role, HeldOutRidge] | None = None
        self.note_whole(tokens=len(source))

    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return the transported factors, and note how well both maps do on held-out tokens."""
        source_inputs = self._source.inputs(source)
        inputs = self._inputs_of(target)
        # In balanced factors: the gauge of the given ones would weigh the code's columns.
        reading = inputs.choose(source_inputs @ update.canonical().A.mT)
        a = transported_reader(update.A, source_inputs, inputs.design, reading.strength)

        target_outputs = _centred(self._target.outputs(target))
        outputs = self._ridge(_centred(self._source.outputs(source)))
        writing = outputs.choose(target_outputs)
        b = transported_writer(update.B, outputs.design, target_outputs, writing.strength)

        self.note(
            target,
            input_strength=reading.strength,
            input_r2=reading.r2,
            output_strength=writing.strength,
            output_r2=writing.r2,
        )
        return LowRank(a, b, update.scale)

    def _inputs_of(self, target: Site) -> HeldOutRidge:
        """Return the factorised inputs of a site; q, k and v share them, and gate and up."""
        key = target.layer, INPUT_ROLE[target.role]
        if self._read is None or self._read[:2] != key:
            self._read = (*key, self._ridge(self._target.inputs(target)))
        return self._read[2]

    def _ridge(self, samples: torch.Tensor) -> HeldOutRidge:
        return HeldOutRidge.of(samples, self._held_out, self.strengths)


def _centred(samples: torch.Tensor) -> torch.Tensor:
    return samples - samples.mean(dim=0)
