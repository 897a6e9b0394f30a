"""The mapper of a transfer: by its name, or out of a checkpoint, and ready for the pair."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ..data.zoo import SIDES
from ..exceptions import ConfigurationError
from ..mappers import BasePair, LearnedMapper, Mapper, WeightMapper, load_mapper
from ..mappers.corpus_mapper import CorpusMapper
from ..mappers.weight_mapper import Progress
from .building import build
from .options import optional


def chosen_mapper(config: DictConfig) -> Mapper:
    """Return the mapper of ``mapper=``, or of ``ckpt=`` where that is given.

    Raises:
        ConfigurationError: a learned mapper lacks its checkpoint, or another one has one.
    """
    hydra = HydraConfig.get()
    name = hydra.runtime.choices["mapper"]
    asked = any(word.startswith("mapper=") for word in hydra.overrides.task)
    built: Mapper = build(config.mapper)
    ckpt = optional(config, "ckpt", str)
    if ckpt is None:
        if isinstance(built, LearnedMapper):
            raise ConfigurationError(
                f"mapper={name} is learned, and there is no checkpoint of it: fit it by `python "
                f"train.py mapper={name} pair={config.pair.name}` and give its mapper.ckpt as ckpt="
            )
        return built
    loaded = load_mapper(Path(ckpt).expanduser())
    if not loaded.fitted:
        raise ConfigurationError(
            f"ckpt={ckpt} holds a {type(loaded).__name__} that was never fitted; give the "
            "mapper.ckpt of a run that came to its end"
        )
    if asked and type(loaded) is not type(built):
        raise ConfigurationError(
            f"ckpt={ckpt} holds a {type(loaded).__name__}, but mapper={name} is a "
            f"{type(built).__name__}; leave mapper= out, or give the checkpoint of that mapper"
        )
    return loaded


def give_models(mapper: Mapper, pair: BasePair, config: DictConfig, progress: Progress) -> None:
    """Give a mapper whatever it needs of the pair to map an adapter.

    Args:
        mapper: A mapper, fitted if it is a learned one.
        pair: Both models on disk.
        config: Of the command, for messages.
        progress: Is told how far the mapper is.

    Raises:
        ConfigurationError: the mapper was fitted for other models.
    """
    if isinstance(mapper, WeightMapper):
        mapper.use(pair, progress)
    elif isinstance(mapper, CorpusMapper):
        _check_pair(mapper, pair, config)


def _check_pair(mapper: CorpusMapper, pair: BasePair, config: DictConfig) -> None:
    """Raise ConfigurationError unless a mapper was fitted for the models of a pair."""
    frame = mapper.frame
    fitted = {
        "source": (frame.source_name, frame.source),
        "target": (frame.target_name, frame.target),
    }
    for side in SIDES:
        model, (name, sites) = getattr(pair, side), fitted[side]
        if model.name == name and model.sites == sites:
            continue
        differs = "" if model.name != name else ", with modules of other shapes"
        raise ConfigurationError(
            f"ckpt={config.get('ckpt')} was fitted for {frame.source_name} and "
            f"{frame.target_name}, but the {side} of pair={config.pair.name} is {model.name}"
            f"{differs}; choose the pair that it was fitted for, or fit one for this pair by "
            "`python train.py` with the same pair"
        )
