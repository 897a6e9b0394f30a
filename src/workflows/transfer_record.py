"""From what a transfer did to its report."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..adapters import LoraAdapter
from ..adapters.combined import Combined
from ..mappers import BasePair, LearnedMapper, Mapper
from ..models.peft_check import Verification
from ..models.sources import folder_hash
from ..reporting.compatibility_record import CompatibilityRecord
from ..reporting.provenance import git_revision, library_versions
from ..reporting.refinement_record import RefinementRecord
from ..reporting.results import PairRecord, Provenance
from ..reporting.transfer_report import AdapterRecord, StepRecord, TransferReport
from .building import Workbench, plain_config
from .information_class import costliest
from .options import optional
from .porting import Ported, Porting

Given = dict[str, LoraAdapter]
"""Adapters by the places that they were given as."""


class Transferred(NamedTuple):
    """What went into a transfer and what came out of it."""

    given: Given
    others: Given
    compatibility: CompatibilityRecord | None
    ported: Ported
    refinement: RefinementRecord | None
    verification: Verification
    anchor_scores: dict[str, Any]


def transfer_report(
    bench: Workbench, porting: Porting, pair: BasePair, done: Transferred, seconds: dict[str, float]
) -> TransferReport:
    """Return everything that ``report.json`` holds."""
    config = plain_config(bench.config)
    result = done.ported.adapter
    models = {side: getattr(pair, side) for side in ("source", "target")}
    hashes = {f"{side} model": folder_hash(model.folder) for side, model in models.items()}
    given, others = (
        tuple(_record(place, adapter) for place, adapter in adapters.items())
        for adapters in (done.given, done.others)
    )
    hashes |= {str(record.place): record.sha256 for record in (*given, *others)}
    ckpt = optional(bench.config, "ckpt", str)
    if ckpt is not None:
        content = Path(ckpt).expanduser().read_bytes()
        hashes["checkpoint"] = hashlib.sha256(content).hexdigest()
    options = {"sparsify": config["sparsify"], "merge": config["merge"]}
    refined = () if done.refinement is None else (done.refinement.information_class,)
    return TransferReport(
        config=config,
        pair=PairRecord(
            name=config["pair"]["name"], source=pair.source.name, target=pair.target.name
        ),
        compatibility=done.compatibility,
        # One mapper a file, each called like its YAML.
        mapper=type(porting.mapper).__module__.rpartition(".")[2],
        trained_with=_trained_with(porting.mapper),
        information_class=costliest(porting.mapper.information_class, *refined),
        adapters=given,
        merged_with=others,
        mapping=done.ported.mapping,
        refinement=done.refinement,
        steps=tuple(_step(name, step, options) for name, step in done.ported.steps.items()),
        output=_record(None, result),
        dtype=str(porting.dtype).removeprefix("torch."),
        scale=porting.scale,
        verification=asdict(done.verification),
        anchor_scores=done.anchor_scores,
        warnings=tuple(_warnings(pair, done)),
        timing={name: round(value, 2) for name, value in seconds.items()},
        provenance=Provenance(
            versions=library_versions(), hashes=hashes, revisions={"checkout": git_revision()}
        ),
    )


def _trained_with(mapper: Mapper) -> dict[str, Any]:
    """Return the options of a learned mapper; a checkpoint has nothing but plain data."""
    return dict(mapper.hparams) if isinstance(mapper, LearnedMapper) else {}


def _record(place: str | None, adapter: LoraAdapter) -> AdapterRecord:
    ranks = [update.rank for update in adapter.values()]
    return AdapterRecord(
        place=place,
        base_model=adapter.base_model,
        sites=len(adapter),
        roles=tuple(role.value for role in adapter.roles),
        ranks=(min(ranks), max(ranks)),
        norm=adapter.norm(),
        sha256=adapter.content_hash(),
    )


def _step(name: str, step: Combined, options: dict[str, Any]) -> StepRecord:
    return StepRecord(
        name=name,
        options=options.get(name.split()[0], {}),
        lost_energy=step.total_lost_energy,
        sites={
            site.label: {"lost_energy": lost, **step.notes[site]}
            for site, lost in step.lost_energy.items()
        },
    )


def _warnings(pair: BasePair, done: Transferred) -> Iterator[str]:
    result = done.ported.adapter
    idle = sum(update.norm() == 0 for update in result.values())
    if done.refinement is not None and idle == len(result):
        yield "the refined adapter is zero at every site, and does nothing on the target"
    if 0 < idle < len(result):
        yield f"{idle} of {len(result)} sites have an update of zero, and do nothing on the target"
    for side, adapters in (("source", done.given), ("target", done.others)):
        model = getattr(pair, side).name
        for place, adapter in adapters.items():
            if adapter.base_model and adapter.base_model != model:
                yield (
                    f"{place} says that it was trained on {adapter.base_model}, and is taken as "
                    f"one of {model}, whose shapes it fits"
                )
