"""What mappers that learn from text are trained on: both models, paired layers, and a corpus."""

from typing import Any, NamedTuple

import torch
from lightning import LightningDataModule

from ..alignment.layer_pairing import LayerPairing
from ..alignment.pairings import Pairing, RelativeDepth, Spread
from ..data import TextCorpus
from ..data.zoo import SIDES
from ..exceptions import ConfigurationError
from ..mappers.corpus_mapper import CorpusMapper, ModelPair
from ..models.statistics_store import StatisticsStore
from .building import Workbench, build
from .compatibility import Compatibility
from .compatibility_check import kept_at
from .options import listed, option


class TextFit(NamedTuple):
    """What a mapper is trained on.

    Attributes:
        models: The two base models.
        data: What the trainer is given.
        corpus: The texts behind it.
        pairing: Of the two models' layers.
    """

    models: ModelPair
    data: LightningDataModule
    corpus: TextCorpus
    pairing: LayerPairing

    @classmethod
    def of(cls, bench: Workbench, mapper: CorpusMapper) -> "TextFit":
        """Load the models, pair their layers, read the corpus, and give the mapper all of it.

        Raises:
            LoraportError: one of them cannot be used.
        """
        models = ModelPair(*(bench.model(side) for side in SIDES))
        corpus = text_corpus(bench, models)
        pairing = layer_pairing(bench, models)
        mapper.use(models, pairing, StatisticsStore(bench.cache / "statistics"))
        data = mapper.data_module(corpus, bench.cache / "activations")
        return cls(models, data, corpus, pairing)

    def facts(self) -> dict[str, Any]:
        """Return what reports say of the texts."""
        return {
            "tokens": self.corpus.tokens,
            "held_out_tokens": self.corpus.held_out_tokens,
            "aligned_share": self.corpus.aligned_share,
            "corpus": self.corpus.content_hash(),
        }


def text_corpus(bench: Workbench, models: ModelPair) -> TextCorpus:
    """Return the corpus, aligned for both models.

    Raises:
        DataError: there is none, or it has hardly any text.
    """
    config = bench.config
    suffixes = listed(config, "data.suffixes", str)
    if option(config, "anchor_questions", bool):
        suffixes += anchor_questions(bench)
    corpus: TextCorpus = build(
        config.data,
        texts=build(config.corpus),
        source_tokenizer=models.source.tokenizer,
        target_tokenizer=models.target.tokenizer,
        suffixes=suffixes,
    )
    return corpus


def anchor_questions(bench: Workbench) -> list[str]:
    """Return what each anchor task puts behind a text, once with each of its labels.

    No row of any task is read for it, and no held-out task's question or label. Tasks take turns,
    so that one of many labels does not take up more texts.
    """
    source, template = bench.task_source(), bench.template
    held_out = set(bench.config.tasks.held_out)
    names = [name for name in bench.config.tasks.names or source.names() if name not in held_out]
    tasks = list(source.load(names).values())
    rounds = max(len(task.labels) for task in tasks)
    return list(
        dict.fromkeys(
            template.ask(task, "") + template.answer(task.labels[turn % len(task.labels)])
            for turn in range(rounds)
            for task in tasks
        )
    )


def layer_pairing(bench: Workbench, models: ModelPair) -> LayerPairing:
    """Return which source layers feed each target layer, by the diagnosis's similarity.

    Raises:
        ConfigurationError: the pairing goes by similarity, but the diagnosis is left out.
    """
    pairing: Pairing = build(bench.config.pairing)
    shape = models.target.sites.layers, models.source.sites.layers
    if isinstance(pairing, RelativeDepth | Spread):
        return pairing.pair(torch.zeros(shape))
    found = None
    if "_target_" in bench.config.diagnosis:
        diagnosis, probes = build(bench.config.diagnosis), build(bench.config.probes)
        found = Compatibility.read(kept_at(bench, diagnosis, probes))
    if found is None:
        raise ConfigurationError(
            f"the pairing {type(pairing).__name__} goes by how alike layers are, which "
            "diagnosis=none leaves out; take diagnosis=cheap, or pairing=relative_depth or spread"
        )
    return pairing.pair(torch.tensor(found.similarity))
