"""Mappers that predict a target adapter as a weighted sum of the anchors' target adapters.

Anchors are pairs of adapters of the same task, one for each model. Each mapper is a rule that turns
inner products of source adapters into coefficients, one set a target site:
``predicted(site) = sum_i c_i(site) target_i(site)``, truncated to the anchors' rank. Inner products
and sums are taken in one of two spaces:

``delta``
    the updates ``B A`` themselves, ``<B_i A_i, B_j A_j>``: free of the gauge of their factors, and
    exact by Gram matrices.
``factors``
    the flattened factors, ``<A_i, A_j> + <B_i, B_j>``, as the anchor methods were published. A and
    B are predicted apart, so that their product has cross terms ``c_i c_j B_i A_j``, and the same
    update in another gauge gives another prediction.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..adapters import AdapterStack, LoraAdapter, Site
from ..alignment import relative_depth
from ..data import AnchorBatch, AnchorPairs, AnchorSet
from ..exceptions import AdapterError, ConfigurationError
from .base import LearnedMapper, Report

SPACES = ("delta", "factors")

_MOST_NORM = 10  # times the largest anchor: no prediction from anchors is sensible beyond

Grams = Mapping[Site, Float[Tensor, "anchors anchors"]]
Inners = Mapping[Site, Float[Tensor, "queries anchors"]]
Coefficients = dict[Site, Float[Tensor, "queries anchors"]]


class AnchorMapper(LearnedMapper):
    """A mapper that is fitted on anchor adapters: takes their Gram matrices, gives coefficients.

    Args:
        space: ``delta`` compares and combines updates, ``factors`` raw A and B.
    """

    data_access: ClassVar[str] = "anchors"
    learns_from: ClassVar[Literal["anchors", "text"] | None] = "anchors"

    def __init__(self, space: str = "delta") -> None:
        super().__init__()
        if space not in SPACES:
            raise ConfigurationError(f"mapper.space is {space!r}; it takes delta or factors")
        self.space = space
        # A subclass saves its own options in the same way, which adds them.
        self.save_hyperparameters({"space": space})
        self._anchors: AnchorSet | None = None

    @abstractmethod
    def solve(self, source: Grams, target: Grams) -> None:
        """Fit on the inner products of the anchors, per source site and per target site."""

    @abstractmethod
    def coefficients(self, inner: Inners) -> Coefficients:
        """Return each target site's weights, from the queries' inner products at source sites."""

    @property
    def gauge_dependent(self) -> bool:
        """True in factor space."""
        return self.space == "factors"

    @property
    def fitted(self) -> bool:
        """Whether anchors have been seen."""
        return self._anchors is not None

    @property
    def anchors(self) -> AnchorSet:
        """The anchors that the mapper is fitted on."""
        if self._anchors is None:
            name = type(self).__name__
            raise RuntimeError(f"{name} has no anchors yet: call fit(anchors), or train it first")
        return self._anchors

    @property
    def data(self) -> AnchorPairs:
        """The data module of the trainer that fits this mapper."""
        return self.trained_on(AnchorPairs)

    def fit(self, anchors: AnchorSet) -> None:
        """Fit on a set of paired adapters.

        Raises:
            AdapterError: the target has a role that the source lacks.
        """
        self._anchors = anchors
        self._largest = {
            site: max(stack.low_rank(index).norm() for index in range(len(stack)))
            for site, stack in anchors.target.items()
        }
        self.source_site = paired_sites(anchors.source, anchors.target)
        self.solve(
            self.inner(anchors.source, anchors.source), self.inner(anchors.target, anchors.target)
        )

    def inner(self, one: AdapterStack, other: AdapterStack) -> Inners:
        """Return the inner products of all pairs of adapters at each site, float64 on the CPU.

        Raises:
            ConfigurationError: in factor space, the ranks differ.
        """
        if self.space == "delta":
            return {site: one[site].delta_gram(other[site]).cpu() for site in one}
        for site in one:
            ranks = one[site].A.shape[1], other[site].A.shape[1]
            if ranks[0] != ranks[1]:
                raise ConfigurationError(
                    f"mapper.space=factors compares factors of rank {ranks[0]} with factors of "
                    f"rank {ranks[1]}; it takes one rank: use mapper.space=delta"
                )
        return {site: one[site].factor_gram(other[site]).cpu() for site in one}

    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return the predicted target adapter, of the anchors' rank, in float32.

        Raises:
            AdapterError: the adapter does not fit the anchors, or lies so far from them that the
                prediction would be many times as large as the largest of them.
        """
        anchors = self.anchors
        check_fits(adapter, anchors)
        query = AdapterStack.of({"the given adapter": adapter})
        weights = self.coefficients(self.inner(query, anchors.source))
        predicted = {
            site: stack.delta_sum(weights[site][0], stack.A.shape[1])
            if self.space == "delta"
            else stack.factor_sum(weights[site][0])
            for site, stack in anchors.target.items()
        }
        for site, update in predicted.items():
            norm, largest = update.norm(), self._largest[site]
            if not norm <= _MOST_NORM * largest:
                raise AdapterError(
                    f"{self.name} predicts an update of norm {norm:.3g} at {site.module_name}, "
                    f"where the largest of {len(anchors.names)} anchors has {largest:.3g}: the "
                    f"adapter of {adapter.base_model} differs from the anchors by far more than "
                    "they do from one another; add anchors like it, or choose mapper=mean"
                )
        return LoraAdapter(predicted, anchors.target_base)

    def report(self) -> Report:
        """Return the anchors' names; subclasses add what they chose."""
        return {"anchors": list(self.anchors.names)}

    def fitted_state(self) -> dict[str, Any]:
        """Return the anchors; everything else is solved again from them."""
        anchors = self.anchors
        return {
            "names": list(anchors.names),
            "source": anchors.source.tensors(),
            "target": anchors.target.tensors(),
            "source_base": anchors.source_base,
            "target_base": anchors.target_base,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Fit again on the anchors of the checkpoint: the same numbers, bit for bit."""
        self.fit(
            AnchorSet(
                tuple(state["names"]),
                AdapterStack.from_tensors(state["source"]),
                AdapterStack.from_tensors(state["target"]),
                state["source_base"],
                state["target_base"],
            )
        )


class ClosedFormMapper(AnchorMapper):
    """An anchor mapper without gradient steps: one epoch that gathers, then a solution.

    ``training_step`` notes which anchors it was given; at the end of the epoch all devices
    exchange their notes, and each of them fits on the whole.
    """

    def __init__(self, space: str = "delta") -> None:
        super().__init__(space)
        self.automatic_optimization = False
        self._seen: list[AnchorBatch] = []
        # DistributedDataParallel refuses a module without a parameter.
        self.unused = nn.Parameter(torch.zeros(()))

    def configure_optimizers(self) -> None:
        """Return no optimizer."""

    def training_step(self, batch: AnchorBatch, batch_idx: int) -> None:
        """Note the anchors of the batch."""
        self._seen.append(batch)

    def on_train_epoch_end(self) -> None:
        """Fit on all anchors that were seen on any device."""
        places = torch.cat([batch.places for batch in self._seen])
        gathered: Any = self.all_gather(places)
        # In the anchors' order, without the copies that a distributed sampler pads with.
        self.fit(self.data.anchors.select(gathered.flatten().unique().tolist()))
        self._seen = []


def paired_sites(source: AdapterStack, target: AdapterStack) -> dict[Site, Site]:
    """Return the source site of each target site: the same role at the same relative depth.

    Raises:
        AdapterError: the source's adapters lack a role that the target's have.
    """
    # Among the layers that are adapted: adapters may leave out some of the model's.
    sources, targets = (sorted({site.layer for site in stack}) for stack in (source, target))
    depth = relative_depth(len(sources), len(targets))
    partner_layer = {layer: sources[index] for layer, index in zip(targets, depth, strict=True)}
    pairs = {site: Site(partner_layer[site.layer], site.role) for site in target}
    for site, partner in pairs.items():
        if partner not in source:
            have = sorted({s.role.module for s in source})
            raise AdapterError(
                f"the target's adapters have {site.module_name}, which is paired with the source's "
                f"{partner.module_name}, but the source's adapters have only {have}, not "
                "in every layer; train both sides on the same roles"
            )
    return pairs


def check_fits(adapter: LoraAdapter, anchors: AnchorSet) -> None:
    """Raise AdapterError unless an adapter has the sites and shapes of the anchors' source side."""
    expected = {
        site: (stack.B.shape[1], stack.A.shape[2]) for site, stack in anchors.source.items()
    }
    found = {site: update.shape for site, update in adapter.items()}
    odd = [site for site in {**expected, **found} if expected.get(site) != found.get(site)]
    if odd:
        site = min(odd, key=lambda site: site.sort_key)
        raise AdapterError(
            f"the adapter of {adapter.base_model} has {found.get(site, 'nothing')} at "
            f"{site.module_name}, where the anchors of this mapper, trained on "
            f"{anchors.source_base}, have {expected.get(site, 'nothing')}; give an adapter of that "
            "base model and those modules, or train the mapper on anchors like it"
        )


STRENGTHS = (1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0, 10.0, math.inf)
"""The ridge strengths that a mapper of anchors chooses among; infinity is the mean adapter."""


def checked_strengths(strengths: Sequence[float], *, finite: bool = False) -> tuple[float, ...]:
    """Return ridge strengths as a tuple, none of them 0.

    Without a penalty a regression in more dimensions than anchors meets every anchor, and
    leave-one-out says nothing. ``finite`` refuses infinity, too: maps of activations have no mean
    to fall back to.

    Raises:
        ConfigurationError: there are none, or one is not positive.
    """
    good = [strength > 0 and (strength < math.inf or not finite) for strength in strengths]
    if not good or not all(good):
        takes = (
            "positive finite numbers, such as [0.001,0.01,0.1,1]"
            if finite
            else "positive numbers, inf for the mean adapter, such as [0.01,0.1,1,inf]"
        )
        raise ConfigurationError(
            f"mapper.strengths is {list(strengths)}; it takes one or more {takes}"
        )
    return tuple(float(strength) for strength in strengths)
