"""Which source layer feeds each target layer."""


def relative_depth(source_layers: int, target_layers: int) -> tuple[int, ...]:
    """Return the source layer at the same relative depth, for each target layer.

    The first layers are paired, and so are the last: ``round(t (S - 1) / (T - 1))``, halves up.

    >>> relative_depth(5, 3)
    (0, 2, 4)
    >>> relative_depth(3, 5)
    (0, 1, 1, 2, 2)
    """
    if target_layers == 1:
        return (source_layers - 1,)
    steps, last = target_layers - 1, source_layers - 1
    return tuple((2 * layer * last + steps) // (2 * steps) for layer in range(target_layers))
