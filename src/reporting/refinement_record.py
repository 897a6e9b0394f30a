"""How an adapter was refined, what was measured without task data, and what to expect of it."""

from pydantic import Field

from .results import Free, Number, Record


class DriftRecord(Record):
    """How far the finished adapter moves the target on generic text, in nats a token.

    Attributes:
        mean: KL divergence of the target with the adapter from the target, mean over tokens.
        p95: Its 95th percentile.
        source_mean: The same of the source's own adapter on the source.
        source_p95: Its 95th percentile.
        budget: What the mean is compared with.
        texts: Number of texts that it was measured on.
    """

    mean: float
    p95: float
    source_mean: float
    source_p95: float
    budget: float
    texts: int


class ExpectedRecord(Record):
    """What part of the gap is to be expected, as measured anchors of the pair say.

    Attributes:
        value: The part; None where nothing can be said.
        low: Lower end of its interval.
        high: Upper end.
        go: Whether it is enough; None where nothing can be said.
        level: The coverage that the interval stands for.
        loo_error: Mean absolute leave-one-out error over the anchors.
        anchors: How many there are.
        features: What was fitted on, with this adapter's values.
        why_not: Why nothing is said.
    """

    value: Number = None
    low: Number = None
    high: Number = None
    go: bool | None = None
    level: Number = None
    loo_error: Number = None
    anchors: int = 0
    features: dict[str, float] = Field(default_factory=dict)
    why_not: str = ""


class RefinementRecord(Record):
    """One refinement.

    Attributes:
        name: Of the refinement.
        information_class: What it may use, with the texts that it was given.
        question: How the adapter was asked: prompt, labels, completion.
        data: Number of texts, inputs and examples that it was given, or what they come from.
        measured: What the refinement reports of each source adapter.
        drift: Of the finished adapter.
        expected: What to expect.
    """

    name: str
    information_class: str
    question: Free
    data: Free
    measured: tuple[Free, ...]
    drift: DriftRecord
    expected: ExpectedRecord
