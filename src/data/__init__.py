"""Tasks and where they come from, zoos of adapters, and the data modules over them."""

from .anchor_pairs import AnchorBatch as AnchorBatch
from .anchor_pairs import AnchorPairs as AnchorPairs
from .anchor_pairs import AnchorSet as AnchorSet
from .task_folders import TaskFolder as TaskFolder
from .task_hub import HubTasks as HubTasks
from .task_source import TaskSource as TaskSource
from .tasks import Example as Example
from .tasks import PromptTemplate as PromptTemplate
from .tasks import Task as Task
from .tiny_tasks import TinyTasks as TinyTasks
from .zoo import Zoo as Zoo
from .zoo import ZooPairs as ZooPairs
from .zoo import write_manifest as write_manifest
