"""Porting adapters from Python: the names that ``import loraport`` offers.

.. code-block:: python

    import loraport

    source = loraport.open_model("SOURCE")  # a folder or a hub id; no weight is read yet
    target = loraport.open_model("TARGET")
    adapter = loraport.read_adapter("ADAPTER")
    mapper = loraport.choose_mapper("cross_lora", source, target, rank=64)
    ported = loraport.port(adapter, mapper, target, output_rank=4)
    check = loraport.save(ported, "PORTED", target)
    print(f"{check.sites} sites, logits change by up to {check.logit_change:.2f}")

``PORTED`` is then a PEFT folder, which ``PeftModel.from_pretrained`` loads. What cannot be done
raises a :class:`~loraport.exceptions.LoraportError` that says why.

The cartridge that ``transfer.py ckpt=mapper.ckpt cartridge=CARTRIDGE`` writes of a ``cast``
mapper is no PEFT adapter; it acts on the target by hooks, in any forward pass and in ``generate``:

.. code-block:: python

    network = AutoModelForCausalLM.from_pretrained("TARGET")
    cartridge = loraport.load_cartridge("CARTRIDGE")
    with cartridge.attached(network):
        written = network.generate(ids, max_new_tokens=20)
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from .adapters import LoraAdapter, read_adapter
from .adapters.merge import Combiner
from .adapters.peft_io import write_peft_files
from .adapters.sparsify import Sparsifier
from .commands.porting import Porting
from .component import Component
from .exceptions import ConfigurationError, ModelError
from .files import staged_folder, writing
from .mappers import BasePair, Mapper, load_mapper
from .mappers.cartridge import load_cartridge
from .models import FactorCache, HubModel, LocalModel, StreamedWeights, Verification, verify

__all__ = [
    "choose_mapper",
    "load_cartridge",
    "load_mapper",
    "open_model",
    "port",
    "read_adapter",
    "save",
    "verify",
]


def open_model(
    place: str | Path, *, name: str = "", revision: str | None = None
) -> StreamedWeights:
    """Open a base model's weights on disk; each is read when a mapper asks for it.

    Args:
        place: A folder, as ``save_pretrained`` writes it, or a hub id, which is fetched where it
            is not in the hub's cache yet.
        name: What adapters for it carry as their base model; empty: the folder's name or the id.
        revision: Branch, tag or commit of the hub.

    Raises:
        ModelError: there is no such model, its architecture is unknown, or a file is damaged.
    """
    if Path(place).expanduser().is_dir():
        return LocalModel(str(place), name).weights(Path())
    if str(place).count("/") != 1:
        raise ModelError(
            f"{place} is no folder; a base model is given as a folder or as a hub id, owner/name"
        )
    return HubModel(str(place), revision).weights(Path())


def choose_mapper(
    name: str,
    source: StreamedWeights,
    target: StreamedWeights,
    *,
    cache: str | Path | None = None,
    device: str = "cpu",
    **options: Any,
) -> Mapper:
    """Return a mapper that needs the weights alone, ready to map; docs/mappers.md lists them.

    Args:
        name: Of the mapper, as in ``mapper=``.
        source: The model that adapters come from.
        target: The model that they go to.
        cache: Folder in which factorisations are kept for the next adapter; None keeps none.
        device: Where matrices are multiplied.
        options: Of the mapper, as in its YAML.

    Raises:
        ConfigurationError: there is no such mapper or option, or the mapper has to be trained.
    """
    known = sorted(path.name[:-5] for path in _recipes().iterdir() if path.name.endswith(".yaml"))
    if name not in known:
        raise ConfigurationError(f"there is no mapper {name!r}; it takes one of {', '.join(known)}")
    recipe = OmegaConf.create((_recipes() / f"{name}.yaml").read_text(encoding="utf-8"))
    whole: Any = OmegaConf.to_container(OmegaConf.merge({"seed": 0}, recipe), resolve=True)
    chosen = Component.model_validate(whole["mapper"])
    if chosen.type.learns_from is not None:
        raise ConfigurationError(
            f"mapper {name!r} is learned: fit it by `python train.py mapper={name}` and give its "
            "checkpoint to loraport.load_mapper"
        )
    unknown = sorted(set(options) - set(chosen.options))
    if unknown:
        raise ConfigurationError(
            f"mapper {name!r} has no option {', '.join(unknown)}; it takes "
            f"{', '.join(chosen.options) or 'none'}"
        )
    mapper: Mapper = chosen.build(**options)
    factors = FactorCache(None if cache is None else Path(cache))
    mapper.use(BasePair(source, target, factors, torch.device(device)))
    return mapper


def _recipes() -> Any:
    return files("loraport.conf") / "mapper"


def port(
    adapter: LoraAdapter | Sequence[LoraAdapter],
    mapper: Mapper,
    target: StreamedWeights,
    *,
    sparsify: Sparsifier | None = None,
    merge: Combiner | None = None,
    output_rank: int | None = None,
    scale: float = 1.0,
) -> LoraAdapter:
    """Return the adapter of the target that a mapper makes of one of the source, or of several.

    Args:
        adapter: One adapter; or several, which are ported and merged.
        mapper: Of :func:`choose_mapper` or :func:`load_mapper`.
        target: The model that the result must fit.
        sparsify: Such as :class:`loraport.adapters.sparsify.Magnitude`.
        merge: Such as :class:`loraport.adapters.merge.Ties`; several adapters need one.
        output_rank: The most that a site of the result may have.
        scale: Multiplies the result.

    Raises:
        AdapterError: the adapter does not fit the source, or the result the target.
        ConfigurationError: an option is out of its range, or several adapters lack ``merge``.
    """
    adapters = [adapter] if isinstance(adapter, LoraAdapter) else list(adapter)
    if len(adapters) != 1 and merge is None:
        raise ConfigurationError(
            f"{len(adapters)} adapters were given to port into one; it takes one adapter, or "
            "several and merge=, such as loraport.adapters.merge.Ties()"
        )
    porting = Porting(mapper, target.sites, sparsify, merge, output_rank=output_rank, scale=scale)
    return porting.port(adapters).adapter


def save(
    adapter: LoraAdapter,
    folder: str | Path,
    target: StreamedWeights,
    *,
    overwrite: bool = False,
) -> Verification:
    """Write a PEFT folder and verify it on the target; where that fails nothing is left of it.

    Raises:
        OutputError: the folder exists and is not to be replaced, or cannot be written.
        VerificationError: PEFT reads something else, or the target's logits do not change.
    """
    folder = Path(folder)
    with staged_folder(folder, overwrite=overwrite) as staged:
        with writing(folder):
            write_peft_files(adapter, staged)
        return verify(staged, target, adapter, called=folder)
