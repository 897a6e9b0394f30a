"""What a transfer is asked for: adapters and options, read and checked before anything is made."""

from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from ..adapters import read_adapter
from ..exceptions import ConfigurationError
from ..mappers import Mapper
from ..mappers.cartridge import CartridgeMapper
from ..refinement.anchor_calibration import AnchorCalibration
from .anchor_choice import AnchorChoice
from .building import Workbench
from .chosen_mapper import chosen_mapper
from .given_adapters import given_adapter
from .options import listed, optional
from .plan import Plan
from .quality_control import given_calibration
from .refining import Refining
from .transfer_record import Given


class Inputs(NamedTuple):
    """What a transfer is asked for, read and checked before anything is made."""

    given: Given
    others: Given
    mapper: Mapper
    plan: Plan
    choice: AnchorChoice
    cartridge: Path | None
    refining: Refining | None
    calibration: AnchorCalibration | None

    @classmethod
    def of(cls, bench: Workbench) -> "Inputs":
        """Read the options and the adapters.

        Raises:
            LoraportError: something cannot be used, or does not go with something else.
        """
        config = bench.config
        mapper, choice, plan = chosen_mapper(config), AnchorChoice.of(bench), Plan.of(config)
        given = {place: given_adapter(bench, place) for place in places(config, "adapter")}
        others = {p: read_adapter(Path(p).expanduser()) for p in places(config, "merge.with")}
        cartridge = cartridge_folder(config, mapper, list(given))
        refining = Refining.of(bench, given)
        if refining is not None:
            check_refinable(refining.name, choice, cartridge)
        calibration = None if refining is None else given_calibration(bench)
        return cls(given, others, mapper, plan, choice, cartridge, refining, calibration)


def check_refinable(name: str, choice: AnchorChoice, cartridge: Path | None) -> None:
    """Raise ConfigurationError where something else takes what the mapper alone makes."""
    if choice.anchors:
        raise ConfigurationError(
            f"choose.anchors ports every anchor as well, and refine={name} would refine each for "
            "minutes; set refine=none and a mapper, such as mapper=cross_lora"
        )
    if cartridge is not None:
        raise ConfigurationError(
            f"cartridge={cartridge} holds the adapter behind its heads, which refine={name} does "
            "not change; leave one of them out"
        )


def places(config: DictConfig, key: str) -> list[str]:
    """Return the adapters that an option names.

    Raises:
        ConfigurationError: one is named twice, or is no text.
    """
    given = listed(config, key, str)
    twice = sorted({place for place in given if given.count(place) > 1})
    if twice:
        raise ConfigurationError(
            f"{key} names {', '.join(twice)} twice; name it once, and give it weight by "
            "merge.weights"
        )
    return given


def cartridge_folder(config: DictConfig, mapper: Mapper, given: list[str]) -> Path | None:
    """Return where ``cartridge=`` asks for the adapter behind its heads.

    Raises:
        ConfigurationError: the mapper makes none, or several adapters are to be merged.
    """
    folder = optional(config, "cartridge", str)
    if folder is None:
        return None
    if not isinstance(mapper, CartridgeMapper):
        raise ConfigurationError(
            f"cartridge={folder} takes ckpt= of mapper=cast, but this mapper is a "
            f"{type(mapper).__name__}, which has no heads; leave cartridge= out"
        )
    if len(given) > 1:
        raise ConfigurationError(
            f"cartridge={folder} holds one adapter, but adapter= names {len(given)}, and what is "
            "behind heads is not merged; give one adapter"
        )
    return Path(folder).expanduser()


def save_cartridge(inputs: Inputs, *, overwrite: bool) -> None:
    """Write the adapter behind its heads, where that is asked for."""
    if inputs.cartridge is not None and isinstance(inputs.mapper, CartridgeMapper):
        (adapter,) = inputs.given.values()
        inputs.mapper.cartridge(adapter).save(inputs.cartridge, overwrite=overwrite)
