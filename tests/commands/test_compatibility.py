import copy
import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loraport.commands.compatibility import (
    Compatibility,
    Diagnosis,
    ProbeStates,
    chosen_rows,
    ngram_baselines,
    read_probe_states,
    untrained,
)
from loraport.data.text_corpus import TextCorpus, TokenBatch
from loraport.evaluation.records import TransferReport
from loraport.exceptions import ConfigurationError, DataError
from loraport.models import BaseModel
from loraport.models.capture import readings
from loraport.models.hooks import Tap
from loraport.store import Key, Store

from .conftest import QUICK_REFINEMENT, Command, Workspace, write_texts


def batch(*rows: list[int]) -> TokenBatch:
    ids = torch.tensor(rows)
    return TokenBatch(ids, (ids > 0).long())


def test_the_same_prefix_gives_the_same_row_in_any_batch():
    one = ngram_baselines(batch([3, 4, 5, 9]), torch.tensor([2]), seed=0)
    other = ngram_baselines(batch([7, 7, 7], [3, 4, 5]), torch.tensor([5]), seed=0)
    for here, there in zip(one, other, strict=True):
        torch.testing.assert_close(here, there)


def test_tokens_in_common_make_rows_alike():
    tokens = batch([3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 7, 9], [11, 12, 13, 14, 15, 9])
    prefix, _, last = (
        torch.nn.functional.normalize(rows, dim=1)
        for rows in ngram_baselines(tokens, torch.tensor([5, 11, 17]), seed=0)
    )
    alike = prefix @ prefix.mT
    assert alike[0, 1] > 0.5 > abs(alike[0, 2]) + 0.1
    alike = last @ last.mT
    assert alike[1, 2] > 0.5 > abs(alike[0, 2]) + 0.1


def test_another_seed_draws_other_vectors():
    one, other = (ngram_baselines(batch([3, 4]), torch.tensor([1]), seed) for seed in (0, 1))
    assert not torch.allclose(one[0], other[0])


SENTENCES = [
    f"the {noun} was truly {word} and the {other} is never {end}"
    for noun in ("film", "plot", "actor", "scene")
    for other in ("plot", "scene", "film")
    for word in ("good", "bad", "dull")
    for end in ("neutral", "very good")
]


class Texts:
    """The sentences, in both splits."""

    name = "texts"

    def texts(self, split: str):
        yield from SENTENCES


@pytest.fixture(scope="module")
def corpus(pico_source: BaseModel, pico_target: BaseModel) -> TextCorpus:
    return TextCorpus(
        Texts(),
        pico_source.tokenizer,
        pico_target.tokenizer,
        tokens=400,
        skip=2,
        batch_tokens=600,
    )


def choose(source, target, documents, **options):
    given = {"rows": 100, "per_token": 2, "seed": 0} | options
    rows = (torch.tensor(row) for row in (source, target, documents))
    return chosen_rows(*rows, **given)


class TestChosenRows:
    def test_no_token_is_taken_more_often_than_allowed(self):
        chosen = choose([1, 1, 1, 1, 2], [8, 8, 8, 9, 8], range(5))
        assert chosen[:3].sum() == 2
        assert chosen[3:].all()

    def test_other_texts_come_before_more_of_the_same(self):
        documents = [place // 10 for place in range(100)]
        chosen = choose(range(100), range(100), documents, rows=20)
        counts = Counter(torch.tensor(documents)[chosen].tolist())
        assert set(counts.values()) == {2}

    def test_never_more_rows_than_asked_for_and_all_if_there_are_fewer(self):
        assert choose(range(9), range(9), [0] * 9, rows=4).sum() == 4
        assert choose(range(9), range(9), [0] * 9).sum() == 9

    def test_the_seed_decides(self):
        one, again, other = (
            choose(range(50), range(50), range(50), rows=9, seed=seed) for seed in (1, 1, 2)
        )
        assert torch.equal(one, again)
        assert not torch.equal(one, other)


def test_states_are_those_of_the_models_at_the_same_words(
    pico_source: BaseModel, pico_target: BaseModel, corpus: TextCorpus
):
    states = read_probe_states(
        pico_source,
        pico_target,
        corpus,
        rows=40,
        per_token=8,
        seed=0,
        progress=lambda what, done, total: None,
    )
    assert states.rows == len(states.tokens) <= 40
    assert states.aligned == corpus.tokens
    assert [layer.shape for layer in states.source] == [(states.rows, 32)] * 2
    assert [layer.shape for layer in states.target] == [(states.rows, 48)] * 3
    assert max(Counter(states.tokens.tolist()).values()) <= 16
    # Every row is among the aligned ones, computed batch by batch on their own.
    last = Tap.residual(2)
    everything = torch.cat(
        [
            readings(pico_target.network, batch.target, batch.target_places, [last])[last]
            for batch in corpus.train_dataloader()
        ]
    )
    away = states.target[2][:, None] - everything
    nearest = away.norm(dim=-1).amin(dim=1)
    assert nearest.max() < 1e-3


# The check that stops a transfer between models that have nothing in common.

CHEAP = ("diagnosis=cheap", "diagnosis.rows=150", "diagnosis.permutations=30")


@pytest.mark.parametrize(
    ("coverage", "force", "forced"),
    [(0.25, True, True), (0.25, False, False), (0.75, True, False)],
)
def test_forced_is_what_would_not_have_gone_on(coverage, force, forced):
    record = Compatibility(((0.5, 0.0),), coverage, 1.0, 300).record(0.5, force=force)
    assert record.forced is forced
    assert ("force=true overrode" in record.words) is forced
    assert f"{coverage:.0%}" in record.words


@pytest.fixture
def asked(workspace: Workspace) -> list[str]:
    adapter, output = workspace.zoo / "source" / "books", workspace.root / "out" / "ported"
    return [*workspace.options(), "mapper=copy", f"adapter={adapter}", f"output={output}"]


def test_random_models_stop_the_transfer(
    workspace: Workspace, command: Command, asked: list[str], tmp_path: Path
):
    end = command("transfer", *asked, *CHEAP)
    assert end.code == 3
    assert "Traceback" not in end.err
    assert end.out == ""
    message = " ".join(end.err.split())
    for part in ("pico/source and pico/target", "at least 50%", "force=true", "diagnosis=none"):
        assert part in message
    assert not (workspace.root / "out").exists()
    assert not list((workspace.root / "work").iterdir())


def test_forced_it_goes_on_and_says_so(
    workspace: Workspace, command: Command, asked: list[str], tmp_path: Path
):
    end = command("transfer", *asked, *CHEAP, "force=true")
    assert end.code == 0, end.err
    folder = workspace.root / "out" / "ported"
    record = TransferReport.model_validate_json((folder / "report.json").read_bytes()).compatibility
    assert record is not None
    assert record.forced
    assert record.coverage < 0.5
    assert "which force=true overrode" in end.out
    assert "which force=true overrode" in (folder / "README.md").read_text()
    # The second time nothing is compared any more: what is kept decides, and is trusted.
    store = Store(workspace.root / "cache")
    (entry,) = (workspace.root / "cache" / "diagnoses").rglob("*.entry")
    kept = store.get(Key("diagnoses", entry.stem))
    assert kept is not None
    store.put(Key("diagnoses", entry.stem), kept | {"coverage": 1.0})
    end = command("transfer", *asked, *CHEAP, "overwrite=true")
    assert end.code == 0, end.err
    record = TransferReport.model_validate_json((folder / "report.json").read_bytes()).compatibility
    assert record is not None
    assert (record.coverage, record.forced) == (1.0, False)


@pytest.mark.parametrize("mapper", [None, "random"])
def test_what_pairs_no_layers_goes_on_with_a_warning(
    workspace: Workspace, command: Command, asked: list[str], mapper: str | None
):
    """The default port, and a control that looks at no layer of the source."""
    words = [*(word for word in asked if word != "mapper=copy"), *CHEAP]
    if mapper is None:
        write_texts(workspace.root / "texts")
        words += [*QUICK_REFINEMENT["corpus_distill"], f"paths.corpus={workspace.root / 'texts'}"]
    else:
        words.append(f"mapper={mapper}")
    end = command("transfer", *words)
    assert end.code == 0, end.err
    folder = workspace.root / "out" / "ported"
    record = TransferReport.model_validate_json((folder / "report.json").read_bytes()).compatibility
    assert record is not None
    assert record.coverage < record.minimum
    assert (record.needed, record.forced) == (False, False)
    assert "this port pairs no layers" in " ".join(end.out.split())
    assert "this port pairs no layers" in (folder / "README.md").read_text()


def test_left_out_it_says_so(workspace: Workspace, command: Command, asked: list[str]):
    end = command("transfer", *asked, "diagnosis=none")
    assert end.code == 0, end.err
    assert "diagnosis: left out" in end.out
    assert (
        TransferReport.model_validate_json(
            (workspace.root / "out/ported/report.json").read_bytes()
        ).compatibility
        is None
    )
    assert not (workspace.root / "cache" / "diagnoses").exists()


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("force=maybe", "force is 'maybe'"),
        ("diagnosis.rows=3", "diagnosis.rows is 3"),
        ("diagnosis=all", "all"),
    ],
)
def test_wrong_options(command: Command, asked: list[str], option: str, named: str):
    end = command("transfer", *asked, option)
    assert end.code == 2
    assert named in end.err


QUICK = Diagnosis(rows=200, per_token=12, permutations=40)


def states_of(source, target, baseline=None) -> ProbeStates:
    rows = len(source[0])
    baselines = (noise(rows, 16, 99) if baseline is None else baseline,)
    indices = torch.arange(rows)
    return ProbeStates(tuple(source), tuple(target), baselines, baselines, indices, indices, rows)


def noise(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def turned(x: torch.Tensor, width: int, seed: int) -> torch.Tensor:
    """An isometry into a wider space, with some noise."""
    q = torch.linalg.qr(noise(width, width, seed)).Q[: x.shape[1]]
    return x @ q + 0.05 * noise(len(x), width, seed + 1)


def judged(states: ProbeStates, diagnosis: Diagnosis = QUICK):
    return diagnosis.judge(states, diagnosis.similarity(states, diagnosis.measure))


def test_planted_layers_are_covered_and_found():
    source = [noise(200, 12, seed) for seed in range(4)]
    target = [turned(layer, 20, 50) for layer in source]
    found = judged(states_of(source, target))
    assert found.coverage == found.identification == 1.0
    assert torch.tensor(found.similarity).argmax(dim=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("rows", [50, 300, 1000])
def test_independent_noise_is_not_covered(rows: int):
    source = [noise(rows, 64, seed) for seed in range(4)]
    target = [noise(rows, 96, 10 + seed) for seed in range(4)]
    assert judged(states_of(source, target)).coverage == 0.0


def test_what_the_bare_text_explains_is_not_covered():
    """Both sides hold n-grams and nothing else, and so do models with random weights."""
    ngrams = noise(200, 16, 7)
    source = [turned(ngrams, 24, seed) for seed in range(3)]
    target = [turned(ngrams, 32, 10 + seed) for seed in range(3)]
    assert judged(states_of(source, target, ngrams)).coverage == 0.0
    assert judged(states_of(source, target)).coverage > 0.0


def test_models_with_random_weights_are_not_covered(pico_source: BaseModel, pico_target: BaseModel):
    found = QUICK.compare(pico_source, pico_target, Texts(), lambda what, done, total: None)
    assert found.coverage < 0.5
    assert len(found.similarity) == 3
    assert len(found.similarity[0]) == 2


def test_random_layers_behind_embeddings_that_correspond_are_not_covered(pico_source: BaseModel):
    """Their layers are alike far beyond n-grams, and no layer has learnt anything."""

    def model(embeddings: torch.Tensor, seed: int) -> BaseModel:
        config = copy.deepcopy(pico_source.network.config)
        config.update({"num_hidden_layers": 3, "initializer_range": 0.02})
        config.hidden_size = embeddings.shape[1]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = AutoModelForCausalLM.from_config(config)
        network.get_input_embeddings().weight.data = embeddings
        return BaseModel.frozen(f"pico/{seed}", network, pico_source.tokenizer, str(seed))

    words = len(pico_source.tokenizer)
    kinds = noise(4, 32, 1)[torch.arange(words) % 4] + 0.5 * noise(words, 32, 2)
    source, target = model(kinds, 5), model(turned(kinds, 48, 3), 6)
    diagnosis = dataclasses.replace(QUICK, per_token=4, neighbours=20)
    states = diagnosis.states(source, target, Texts(), lambda what, done, total: None)
    similarity = diagnosis.similarity(states, diagnosis.measure)
    assert not diagnosis.coverage(states, similarity).covered.any()
    ngrams = dataclasses.replace(
        states,
        source_baselines=states.source_baselines[:-3],
        target_baselines=states.target_baselines[:-3],
    )
    assert diagnosis.coverage(ngrams, similarity).scores.min() > 0.5


def test_the_untrained_network_shares_the_embeddings_alone(pico_target: BaseModel):
    network = pico_target.network
    drawn, again, other = (untrained(pico_target, seed) for seed in (0, 0, 1))
    assert drawn.get_input_embeddings().weight is network.get_input_embeddings().weight
    layers = [n.state_dict() for n in (drawn, again, other)]
    for name, own in network.state_dict().items():
        new, same, third = (weights[name] for weights in layers)
        assert torch.equal(new, same)
        if ".layers." in name and own.ndim == 2:
            assert not torch.equal(new, own)
            assert not torch.equal(new, third)


def test_a_model_is_covered_by_itself(pico_source: BaseModel):
    """Of random weights, so that only the calibration by the text is switched off."""
    diagnosis = dataclasses.replace(QUICK, surplus=0.0)
    found = diagnosis.compare(pico_source, pico_source, Texts(), lambda what, done, total: None)
    assert found.coverage == 1.0


def test_probes_with_hardly_any_common_word_are_refused(
    pico_source: BaseModel, pico_target: BaseModel
):
    class One(Texts):
        def texts(self, split: str):
            yield from ["the film is good"] * len(SENTENCES)

    with pytest.raises(DataError, match="diagnosis=none"):
        QUICK.compare(pico_source, pico_target, One(), lambda what, done, total: None)


@pytest.mark.parametrize(
    "options",
    [
        *({"rows": 10}, {"per_token": 0}, {"neighbours": 0}, {"neighbours": 40}),
        *({"permutations": 3}, {"minimum": 1.5}, {"surplus": -0.1}),
    ],
    ids=str,
)
def test_numbers_out_of_range(options):
    with pytest.raises(ConfigurationError, match=f"diagnosis.{next(iter(options))}"):
        Diagnosis(**options)
