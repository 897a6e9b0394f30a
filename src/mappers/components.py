"""Principal components of the anchors at each site, on both sides."""

from dataclasses import dataclass

from ..adapters import Site
from ..alignment import PrincipalScores
from ..exceptions import ConfigurationError
from .anchor_mapper import Grams


@dataclass(frozen=True, eq=False)
class SiteComponents:
    """The leading components of a target site and of the source site it is paired with."""

    source: PrincipalScores
    target: PrincipalScores


def fit_components(
    source: Grams, target: Grams, pairing: dict[Site, Site], components: int
) -> dict[Site, SiteComponents]:
    """Return the components of every target site.

    Raises:
        ConfigurationError: there are too few anchors for so many components, or none are asked.
    """
    anchors = next(iter(target.values())).shape[0]
    if components < 1:
        raise ConfigurationError(f"mapper.components is {components}; it takes 1 or more")
    if components > anchors - 1:
        raise ConfigurationError(
            f"mapper.components is {components}, but {anchors} anchors span at most "
            f"{anchors - 1} components; set mapper.components={max(anchors - 1, 1)} or lower, or "
            "add anchors"
        )
    used = dict.fromkeys(pairing[site] for site in target)
    sources = {site: PrincipalScores.fit(source[site], components) for site in used}
    return {
        site: SiteComponents(sources[pairing[site]], PrincipalScores.fit(gram, components))
        for site, gram in target.items()
    }
