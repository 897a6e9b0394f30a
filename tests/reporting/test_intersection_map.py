import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from loraport.reporting.intersection_map import (
    Geometry,
    IntersectionMap,
    LayerConfidence,
    MeasureMap,
    ModuleFit,
    Probes,
    TransportCell,
    Verdict,
    write_intersection_map,
)
from loraport.reporting.results import PairRecord, Provenance


def grid(targets: int, sources: int, best: float = 0.5) -> tuple[tuple[float, ...], ...]:
    """Highest where target and source lie equally deep."""
    return tuple(
        tuple(
            best - abs(t / max(targets - 1, 1) - s / max(sources - 1, 1)) / 2
            for s in range(sources)
        )
        for t in range(targets)
    )


def content_of(targets: int = 2, sources: int = 3, **fields: Any) -> IntersectionMap:
    given: dict[str, Any] = {
        "config": {"probes": {}, "force": False, "paths": {"cache": "somewhere/private"}},
        "pair": PairRecord(name="local", source="pico/source", target="pico/<target>"),
        "probes": Probes(name="sentences", texts=90, aligned=4000, rows=300, tokens=120),
        "verdict": Verdict(
            coverage=1.0,
            minimum=0.5,
            identification=0.5,
            compatible=True,
            forced=False,
            words="Compatible: all layers.",
        ),
        "measures": {
            name: MeasureMap(
                title=title,
                raw=grid(targets, sources, 0.6),
                calibrated=grid(targets, sources),
                rows=300,
            )
            for name, title in (("mutual_knn", "mutual k-NN"), ("rsa", "RSA"))
        },
        "transport": (
            TransportCell(target=0, source=1, rows=50, diagonal_mass=0.25, matched=0.5, ratio=0.75),
        ),
        "layers": tuple(
            LayerConfidence(
                target=t,
                source=t,
                similarity=0.4,
                covered=t == 0,
                agreement=1.0,
                procrustes_error=0.3,
            )
            for t in range(targets)
        ),
        "geometry": Geometry(mean_error=0.3, max_error=0.4, roughness=0.7, anchor_coverage=0.9),
        "pairing": (((0, 1.0),), ((1, 0.25), (2, 0.75)), *((),) * (targets - 2)),
        "pairing_name": "many_to_one",
        "modules": (
            ModuleFit(target="0.q", source="0.q", inputs=0.5, outputs=0.25),
            ModuleFit(target="1.q", source="2.q", inputs=0.7, outputs=-0.25),
        ),
        "warnings": ("mind <this>",),
        "timing": {"compare": 1.25},
        "provenance": Provenance(versions={"torch": "2"}, hashes={"source model": "cd" * 32}),
    }
    return IntersectionMap(**(given | fields))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = content_of()
    path = write_intersection_map(content, tmp_path / "intersection_map.json")
    assert IntersectionMap.model_validate_json(path.read_bytes()) == content
    plain = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (plain["schema"], plain["command"]) == (1, "diagnose")


def test_undefined_numbers_become_null(tmp_path: Path) -> None:
    layers = (
        LayerConfidence(target=0, source=0, similarity=float("nan"), covered=False, agreement=None),
    )
    path = write_intersection_map(content_of(layers=layers), tmp_path / "map.json")
    assert json.loads(path.read_text())["layers"][0]["similarity"] is None


def test_grids_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValidationError, match="one shape"):
        MeasureMap(title="x", raw=grid(2, 3), calibrated=grid(2, 2), rows=9)


def test_the_verdict_is_what_other_reports_hold() -> None:
    record = content_of().verdict.record(300)
    assert (record.coverage, record.rows, record.forced) == (1.0, 300, False)
