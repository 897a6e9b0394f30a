"""What all cards have in common: how their templates are read, and their last table."""

from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from .results import Provenance


def card_environment() -> Environment:
    """Return the environment of the cards' templates."""
    # Plain text, not HTML: a card that escaped "it's" would not be read as Markdown.
    return Environment(
        loader=PackageLoader("loraport.reporting"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )


def provenance_rows(record: Provenance, hashes: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return versions, hashes and revisions by what they are of; ``hashes`` may leave some out."""
    return [
        *record.versions.items(),
        *((f"SHA-256 of {name}", value) for name, value in hashes.items()),
        *((f"revision of {name}", value) for name, value in record.revisions.items() if value),
    ]
