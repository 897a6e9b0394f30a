"""Factorisations of base weights, kept on disk under the weights' content."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..adapters.sites import Site
from ..alignment.randomised_svd import TruncatedSvd, randomised_svd
from ..exceptions import ModelError
from ..files import write_whole
from .weights import StreamedWeights, content_hash

# Raise it when the code changes what is kept or what comes out of a factorisation.
_FORMAT = 4
_PARTS = ("U", "S", "V")


class FactorCache:
    """Truncated SVDs of base weights, each computed once.

    A factorisation lies in a file under the hash of the weight's content and of all that the
    computation depends on, so that it serves every adapter, pair and copy of the model. Several
    processes may use one folder: a file appears whole, by a rename.

    Args:
        folder: Where the files lie; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._pending: Future[None] | None = None
        self._pending_file: Path | None = None

    def svd(
        self,
        weights: StreamedWeights,
        site: Site,
        *,
        rank: int,
        oversampling: int,
        power_iterations: int,
        seed: int,
        device: torch.device,
    ) -> TruncatedSvd:
        """Return the leading singular triplets of a site's weight, in float32 on ``device``.

        What was kept has the very bits that were computed; a kept file that is damaged is
        computed again. For the other arguments see
        :func:`~loraport.alignment.randomised_svd.randomised_svd`.

        Raises:
            ModelError: the weight cannot be read, or has entries that are not finite.
            OutputError: the factorisation before this one could not be kept: the disk is full,
                or the place forbidden. Each is written while the next is computed.
        """
        weight = weights.weight(site)
        options = {
            "rank": rank,
            "oversampling": oversampling,
            "power_iterations": power_iterations,
            "seed": seed,
        }
        file = self._file(weight, options)
        if file is not None:
            if file == self._pending_file:  # a model ported to itself
                self.flush()
            kept = _read(file, weights.sites.shapes[site])
            if kept is not None:
                return _moved(kept, device)
        try:
            svd = randomised_svd(weight.to(device), **options)
        except ValueError as error:
            raise ModelError(
                f"{site.module_name} of {weights.name} cannot be factorised ({error}); fetch the "
                f"weights in {weights.folder} again"
            ) from error
        if file is not None:
            self.flush()
            self._pending, self._pending_file = _writer().submit(_write, file, svd), file
        return svd

    def _file(self, weight: Float[Tensor, "out in"], options: dict[str, int]) -> Path | None:
        """Return where the factorisation of a weight is kept."""
        if self._folder is None:
            return None
        settings = " ".join(str(value) for value in (_FORMAT, *options.values()))
        key = hashlib.sha256(f"{content_hash(weight)} {settings}".encode()).hexdigest()
        return self._folder / key[:2] / f"{key}.safetensors"

    def flush(self) -> None:
        """Wait until everything is kept.

        Raises:
            OutputError: it cannot be kept: the disk is full, or the place forbidden.
        """
        pending, self._pending, self._pending_file = self._pending, None, None
        if pending is not None:
            pending.result()


@cache
def _writer() -> ThreadPoolExecutor:
    """One thread that writes while the next weight is factorised."""
    return ThreadPoolExecutor(1, thread_name_prefix="factor-cache")


def _moved(svd: TruncatedSvd, device: torch.device) -> TruncatedSvd:
    return TruncatedSvd(svd.U.to(device), svd.S.to(device), svd.V.to(device), svd.energy)


def _read(file: Path, shape: tuple[int, int]) -> TruncatedSvd | None:
    """Return what a file holds; None if it is not there or damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            # Copied out of the memory map, where they are aligned otherwise than what was
            # computed: products with them would not round alike.
            u, s, v = (opened.get_tensor(part).clone() for part in _PARTS)
            svd = TruncatedSvd(u, s, v, float.fromhex(opened.metadata()["energy"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    return svd if (len(u), len(v)) == shape else None


def _write(file: Path, svd: TruncatedSvd) -> None:
    """Write a factorisation, whole or not at all."""
    here = _moved(svd, torch.device("cpu"))
    content = save(dict(zip(_PARTS, here[:3], strict=True)), {"energy": here.energy.hex()})
    write_whole(file, content)
