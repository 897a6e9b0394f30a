"""Refusing a pair of base models between which no adapter can be carried over."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from ..data.probe_sets import ProbeSet
from ..data.text_source import TRAIN
from ..data.zoo import SIDES
from ..exceptions import IncompatibleError
from ..models import ModelSource
from ..models.sources import folder_hash
from ..reporting.compatibility_record import CompatibilityRecord
from .building import Workbench, build
from .compatibility import Compatibility
from .diagnosis_progress import diagnosis_progress
from .options import option
from .pair_diagnosis import Diagnosis

# Raise it when the code changes what is kept or what comes out of it.
_FORMAT = 1


def check_compatibility(bench: Workbench) -> CompatibilityRecord | None:
    """Diagnose the pair of a configuration, unless that is left out, and refuse a hopeless one.

    What was found is kept in the cache, under both models, the probes and the options, so that a
    pair is diagnosed once.

    Returns:
        What reports are to hold; None with ``diagnosis=none``.

    Raises:
        IncompatibleError: the coverage is too low, and ``force`` is not set.
        ModelError: a base model cannot be found or read.
        DataError: the probes cannot be read.
    """
    force = option(bench.config, "force", bool)
    if "_target_" not in bench.config.diagnosis:
        return None
    diagnosis: Diagnosis = build(bench.config.diagnosis)
    probes: ProbeSet = build(bench.config.probes)
    place = kept_at(bench, diagnosis, probes)
    found = Compatibility.read(place)
    if found is None:
        with diagnosis_progress() as progress:
            source, target = (bench.model(side) for side in SIDES)
            found = diagnosis.compare(source, target, probes, progress)
        found.write(place)
    record = found.record(diagnosis.minimum, force=force)
    refuse_incompatible(bench, record)
    return record


def kept_at(bench: Workbench, diagnosis: Diagnosis, probes: ProbeSet) -> Path:
    """Return the file in the cache that is kept for a pair, its probes and the options."""
    options = {name: value for name, value in asdict(diagnosis).items() if name != "minimum"}
    sources: list[ModelSource] = [build(bench.config.pair[side]) for side in SIDES]
    made_of = {
        "format": _FORMAT,
        "models": [folder_hash(source.weights(bench.cache).folder) for source in sources],
        "dtypes": [getattr(source, "dtype", "float32") for source in sources],
        "probes": list(probes.texts(TRAIN)),
        "options": options,
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    return bench.cache / "compatibility" / f"{key[:32]}.json"


def refuse_incompatible(bench: Workbench, record: CompatibilityRecord) -> None:
    """Raise IncompatibleError where the coverage is too low and ``force`` is not set."""
    if record.coverage >= record.minimum or record.forced:
        return
    source, target = (bench.config.pair[side] for side in SIDES)
    names = [str(build(side).name) for side in (source, target)]
    raise IncompatibleError(
        f"{names[0]} and {names[1]} (pair={bench.config.pair.name}) represent text too "
        f"differently: only {record.coverage:.0%} of the target's layers have a counterpart in the "
        f"source (calibrated mutual k-NN of {record.rows} word ends), and at least "
        f"{record.minimum:.0%} are needed, so that an adapter would not work. `python diagnose.py "
        f"pair={bench.config.pair.name}` shows more; force=true goes on nevertheless, and "
        "diagnosis=none leaves this check out"
    )
