"""What a diagnosis means, in words."""

from collections.abc import Iterator, Sequence

from .intersection_map import ModuleFit


def verdict_words(
    source: str, target: str, coverage: float, minimum: float, identification: float
) -> str:
    """Return two sentences: whether the pair is compatible, and how sure the layers are.

    Args:
        source: Name of the source model.
        target: Name of the target model.
        coverage: Share of the target's layers that have a counterpart in the source.
        minimum: What is asked for.
        identification: Share of the layers that are found again on other rows.
    """
    share = f"{coverage:.0%} of the layers of {target} have a counterpart in {source}"
    if coverage < minimum:
        first = f"Not compatible: {share}, and at least {minimum:.0%} are needed"
    else:
        first = f"Compatible: {share}, of at least {minimum:.0%} that are needed"
    return f"{first}. {_identified(identification)}"


def _identified(identification: float) -> str:
    found = f"on other rows {identification:.0%} of the layers are led back to"
    if identification >= 0.5:
        return f"The layers are told apart: {found}."
    return f"Which layer is whose counterpart is not sure: {found}."


def fit_warnings(modules: Sequence[ModuleFit], adapted: bool) -> Iterator[str]:
    """Say where the linear maps between modules predict nothing on held-out text.

    Args:
        modules: The maps.
        adapted: Whether they were restricted to an adapter's directions.
    """
    for what, place in (("input", "inputs"), ("output", "outputs")):
        name = f"adapter_{place}" if adapted else place
        bad = [fit.target for fit in modules if _is_bad(getattr(fit, name))]
        if bad:
            directions = " in the directions that the adapter uses" if adapted else ""
            shown = ", ".join(bad[:6]) + (", ..." if len(bad) > 6 else "")
            yield (
                f"{len(bad)} of {len(modules)} {what} maps predict nothing on held-out text"
                f"{directions} (R^2 at most 0: {shown}); what goes through them is noise"
            )


def _is_bad(value: float | None) -> bool:
    return value is not None and value <= 0


def mean_fit(modules: Sequence[ModuleFit]) -> dict[str, dict[str, float]]:
    """Return for each role the mean of every R^2 over the target's layers.

    >>> mean_fit([ModuleFit(target="0.q", source="1.q", inputs=0.5, outputs=0.25)])
    {'q': {'inputs': 0.5, 'outputs': 0.25}}
    """
    found: dict[str, dict[str, list[float]]] = {}
    for fit in modules:
        role = found.setdefault(fit.target.rpartition(".")[2], {})
        for name in ("inputs", "outputs", "adapter_inputs", "adapter_outputs"):
            value = getattr(fit, name)
            if value is not None:
                role.setdefault(name, []).append(value)
    return {
        role: {name: sum(values) / len(values) for name, values in facts.items()}
        for role, facts in found.items()
    }
