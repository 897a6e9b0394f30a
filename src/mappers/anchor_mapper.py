"""Mappers that predict a target adapter as a weighted sum of the anchors' target adapters.

Each of them is a rule that turns inner products of source adapters into coefficients, one set a
target site: ``predicted(site) = sum_i c_i(site) target_i(site)``, truncated to the anchors' rank.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ..adapters import AdapterStack, LoraAdapter, Site
from ..alignment import relative_depth
from ..data import AnchorPairs, AnchorSet
from ..exceptions import AdapterError
from .base import Report
from .learned import LearnedMapper
from .spaces import space_named

Grams = Mapping[Site, Float[Tensor, "anchors anchors"]]
Inners = Mapping[Site, Float[Tensor, "queries anchors"]]
Coefficients = dict[Site, Float[Tensor, "queries anchors"]]


class AnchorMapper(LearnedMapper):
    """A mapper that is fitted on anchor adapters: takes their Gram matrices, gives coefficients.

    Args:
        space: ``delta`` compares and combines updates, ``factors`` raw A and B.
    """

    information_class: ClassVar[str] = "anchors"

    def __init__(self, space: str = "delta") -> None:
        super().__init__()
        self.space = space_named(space)
        # Of a subclass with options of its own, these are saved beside it.
        self.save_hyperparameters({"space": space})
        self._anchors: AnchorSet | None = None

    @abstractmethod
    def solve(self, source: Grams, target: Grams) -> None:
        """Fit on the inner products of the anchors, per source site and per target site."""

    @abstractmethod
    def coefficients(self, inner: Inners) -> Coefficients:
        """Return the weights of the anchors for each target site.

        Args:
            inner: Inner products of the queries with the anchors, per source site.
        """

    @property
    def gauge_dependent(self) -> bool:
        """True in factor space."""
        return self.space.gauge_dependent

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
        data: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, AnchorPairs):
            raise RuntimeError(f"{type(self).__name__} trains on AnchorPairs, not on {data!r}")
        return data

    def fit(self, anchors: AnchorSet) -> None:
        """Fit on a set of paired adapters.

        Raises:
            AdapterError: the target has a role that the source lacks.
        """
        self._anchors = anchors
        self.source_site = paired_sites(anchors.source, anchors.target)
        source = {s: self._gram(anchors.source, anchors.source, s) for s in anchors.source}
        target = {s: self._gram(anchors.target, anchors.target, s) for s in anchors.target}
        self.solve(source, target)

    def _gram(self, one: AdapterStack, other: AdapterStack, site: Site) -> Tensor:
        return self.space.gram(one[site], other[site]).cpu()

    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return the predicted target adapter, of the anchors' rank, in float32."""
        anchors = self.anchors
        check_fits(adapter, anchors)
        query = AdapterStack.of({"the given adapter": adapter})
        inner = {s: self._gram(query, anchors.source, s) for s in anchors.source}
        weights = self.coefficients(inner)
        return LoraAdapter(
            {
                site: self.space.combine(stack, weights[site][0], stack.A.shape[1])
                for site, stack in anchors.target.items()
            },
            anchors.target_base,
        )

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


def paired_sites(source: AdapterStack, target: AdapterStack) -> dict[Site, Site]:
    """Return the source site of each target site: the same role at the same relative depth.

    Raises:
        AdapterError: the source's adapters lack a role that the target's have.
    """
    # Among the layers that are adapted: adapters may leave out some of the model's.
    sources, targets = (sorted({site.layer for site in stack}) for stack in (source, target))
    depth = relative_depth(len(sources), len(targets))
    partner_layer = {layer: sources[place] for layer, place in zip(targets, depth, strict=True)}
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
    """Raise unless an adapter has exactly the sites and shapes of the anchors' source side."""
    expected = set(anchors.source)
    if set(adapter) != expected:
        odd = sorted(set(adapter) ^ expected, key=lambda site: site.sort_key)[0]
        what = "lacks" if odd in expected else "has"
        raise AdapterError(
            f"the adapter of {adapter.base_model} {what} {odd.module_name}, unlike the anchors of "
            f"this mapper, which adapt {', '.join(sorted({s.role.module for s in expected}))}; "
            "give an adapter of the same modules, or train the mapper on anchors like it"
        )
    for site, update in adapter.items():
        stack = anchors.source[site]
        shape = (stack.B.shape[1], stack.A.shape[2])
        if update.shape != shape:
            raise AdapterError(
                f"the adapter of {adapter.base_model} has shape {update.shape} at "
                f"{site.module_name}, but the anchors of this mapper, trained on "
                f"{anchors.source_base}, have {shape}; give an adapter of that base model"
            )
