"""Whether a port is refined: by default, unless a mapper is named."""

from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


def settled(config: DictConfig) -> DictConfig:
    """Return the configuration with what ``refine`` is meant to be.

    Who names a mapper, or a checkpoint of one, asks for what that mapper makes; who names a
    refinement as well gets both, and who names neither the default port.
    """
    if not _mapper_alone(HydraConfig.get().overrides.task):
        return config
    plain = config.copy()
    OmegaConf.update(plain, "refine", {}, merge=False)
    return plain


def _mapper_alone(words: Sequence[str]) -> bool:
    named = {word.lstrip("+~").partition("=")[0] for word in words}
    refined = any(name.partition(".")[0] in ("refine", "refine_texts") for name in named)
    return not refined and bool(named & {"mapper", "ckpt"})
