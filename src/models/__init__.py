"""Base models: where they come from, their sites, and LoRA adapters on them."""

from .architectures import ARCHITECTURES as ARCHITECTURES
from .architectures import SiteTable as SiteTable
from .hooks import attached as attached
from .likelihood import last_logits as last_logits
from .loading import BaseModel as BaseModel
from .loading import ChunkedGguf as ChunkedGguf
from .loading import HubModel as HubModel
from .loading import LocalModel as LocalModel
from .loading import ModelSource as ModelSource
from .loading import PackagedGguf as PackagedGguf
from .lora_training import LoraFineTuning as LoraFineTuning
from .streaming import FactorCache as FactorCache
from .streaming import StreamedWeights as StreamedWeights
from .verify import Verification as Verification
from .verify import verify as verify
