"""``diagnosis.html``: the whole diagnosis on one page that needs no other file."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..files import write_whole
from .card_parts import provenance_rows
from .diagnosis_table import FIT_COLUMNS, fit_rows, layer_rows, measure_rows, number, remarks
from .intersection_map import IntersectionMap

_SETTINGS = ("probes", "diagnosis", "pairing", "adapter", "force", "seed")


def diagnosis_page(content: IntersectionMap, pictures: Mapping[str, Path]) -> str:
    """Return the page.

    Args:
        content: What was found.
        pictures: The heat map of each measure, which the page holds inline.
    """
    environment = Environment(
        loader=PackageLoader("loraport.reporting"), undefined=StrictUndefined, autoescape=True
    )
    settings = {name: content.config[name] for name in _SETTINGS if name in content.config}
    return environment.get_template("diagnosis.html.j2").render(
        content=content,
        pictures=[(content.measures[n].title, _inline(file)) for n, file in pictures.items()],
        remarks=remarks(content),
        tables=[
            ("Measures", *measure_rows(content)),
            ("Layers", *layer_rows(content)),
            ("Linear maps between modules, mean over the layers", *fit_rows(content)),
        ],
        fit_columns=FIT_COLUMNS,
        number=number,
        settings=json.dumps(settings, indent=1),
        provenance=provenance_rows(content.provenance, content.provenance.hashes),
    )


def write_diagnosis_page(
    content: IntersectionMap, pictures: Mapping[str, Path], path: str | Path
) -> Path:
    """Write the page, whole or not at all, and return its path."""
    return write_whole(Path(path), diagnosis_page(content, pictures))


def _inline(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
