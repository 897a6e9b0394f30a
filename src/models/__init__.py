"""Base models: where they come from, their sites, and LoRA adapters on them."""

from .attach import attached as attached
from .base import BaseModel as BaseModel
from .base import ModelSource as ModelSource
from .factor_cache import FactorCache as FactorCache
from .finetune import LoraFineTuning as LoraFineTuning
from .gguf import ChunkedGguf as ChunkedGguf
from .gguf import PackagedGguf as PackagedGguf
from .logits import last_logits as last_logits
from .peft_check import Verification as Verification
from .peft_check import verify as verify
from .sites import ARCHITECTURES as ARCHITECTURES
from .sites import SiteTable as SiteTable
from .sources import HubModel as HubModel
from .sources import LocalModel as LocalModel
from .tiny import TinyModel as TinyModel
from .weights import StreamedWeights as StreamedWeights
