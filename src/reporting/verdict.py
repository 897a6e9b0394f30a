"""What the numbers of a run mean, in words."""

from .results import Ends, Margin, Results


def verdict(results: Results) -> str:
    """Return two sentences that say how well the mapper works and how sure that is.

    A difference counts only where its 95 % interval lies on one side of 0.
    """
    return f"{_gap_sentence(results)} {_margin_sentence(results)}"


def interval_text(ends: Ends, digits: int = 2) -> str:
    """Return an interval as ``[0.12, 0.34]``; an end without bound is ``inf``.

    >>> interval_text((0.123, None))
    '[0.12, inf]'
    """
    if ends is None:
        return "[none]"
    low, high = ends
    low_text = "-inf" if low is None else f"{low:.{digits}f}"
    high_text = "inf" if high is None else f"{high:.{digits}f}"
    return f"[{low_text}, {high_text}]"


def _gap_sentence(results: Results) -> str:
    summary = results.summary
    if summary.gap_recovered is None:
        return (
            f"Nothing can be said about the gap that {results.mapper} recovers: on none of the "
            f"{summary.tasks} held-out tasks is the oracle 3 points above the base."
        )
    share = f"{summary.gap_recovered:.0%}"
    told = (
        f"{results.mapper} recovers {share} of what the oracle gains over the base, mean over "
        f"{summary.usable} usable of {summary.tasks} held-out tasks, 95 % interval "
        f"{interval_text(summary.ci95)}"
    )
    low, high = summary.ci95 if summary.ci95 is not None else (None, None)
    if high is not None and high < 0:
        return f"{told}: it is worse than no adapter at all."
    if low is None or low <= 0:
        return f"{told}: the interval contains 0, so a gain over no adapter is not shown."
    return f"{told}: better than no adapter."


def _margin_sentence(results: Results) -> str:
    summary = results.summary
    if results.mapper == "mean":
        return "It is itself the anchors' mean adapter, which every learned mapper has to beat."
    over_mean, best = summary.margin_over_mean, summary.margin
    sentence = _compared(over_mean, "the anchors' mean adapter")
    if best.control == over_mean.control:
        return sentence
    name = "the base without adapter" if best.control == "base" else f"the {best.control} control"
    return f"{sentence} The strongest control is {name}: {_points(best)} against it."


def _compared(margin: Margin, name: str) -> str:
    if margin.value is None or margin.ci95 is None:
        return f"There is no comparison with {name}."
    low, high = margin.ci95
    if low is not None and low > 0:
        return f"It beats {name}: {_points(margin)}."
    if high is not None and high < 0:
        return f"It is worse than {name}: {_points(margin)}."
    if margin.value == low == high == 0:
        return f"It is right and wrong on the same rows as {name}."
    return f"It is not told apart from {name}: {_points(margin)}."


def _points(margin: Margin) -> str:
    if margin.value is None or margin.ci95 is None:
        return "an unknown number of points"
    low, high = (None if end is None else 100 * end for end in margin.ci95)
    return (
        f"{100 * margin.value:+.1f} points of accuracy, interval "
        f"{interval_text((low, high), digits=1)}"
    )
