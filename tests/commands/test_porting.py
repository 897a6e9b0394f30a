import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import AutoModelForCausalLM

from loraport.adapters import LoraAdapter, LowRank, Role, Site, read_adapter, relative_error
from loraport.adapters.merge import Linear, Ties, WeightAverage
from loraport.adapters.sparsify import DropComponents, Magnitude
from loraport.commands import porting as module
from loraport.commands.context import RunContext
from loraport.commands.porting import (
    Porting,
    anchor_texts,
    expected,
    given_adapter,
    given_examples,
    given_inputs,
    port_setting,
    prompt_spec,
)
from loraport.data.prompts import PromptSpec
from loraport.data.tasks import Example
from loraport.data.zoo import SIDES
from loraport.evaluation.records import ExpectedRecord, TransferReport
from loraport.exceptions import AdapterError, ConfigurationError, DataError
from loraport.mappers import Mapper
from loraport.mappers.base import Report
from loraport.mappers.controls import NoopMapper
from loraport.models import BaseModel, SiteTable
from loraport.refinement.expected_recovery import AnchorCalibration
from loraport.refinement.label_distillation import LabelStudent

from .conftest import (
    QUICK_REFINEMENT,
    TASKS,
    Command,
    Outcome,
    Workspace,
    context_of,
    new_workspace,
    run_command,
    write_inputs,
    write_texts,
)
from .test_port_refused import contents


def context_for(workspace: Workspace, *words: str) -> RunContext:
    return context_of("transfer", *workspace.options(), "adapter=any", *words)


def hash_of(folder: Path) -> str:
    return read_adapter(folder).content_hash()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> list[str]:
    """The ids that were asked of the hub, which has every adapter."""
    asked: list[str] = []

    def download(name: str, **options: object) -> str:
        asked.append(name)
        assert options["allow_patterns"] == ["adapter_config.json", "adapter_model.safetensors"]
        return str(workspace.zoo / "source" / "plays")

    monkeypatch.setattr(module, "snapshot_download", download)
    return asked


def test_a_folder_is_read(workspace: Workspace, fetched: list[str]) -> None:
    folder = workspace.zoo / "source" / "books"
    assert given_adapter(context_for(workspace), str(folder)).content_hash() == hash_of(folder)
    assert fetched == []


def test_a_home_folder_is_found(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, fetched: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(workspace.zoo))
    given = given_adapter(context_for(workspace), "~/source/books")
    assert given.content_hash() == hash_of(workspace.zoo / "source" / "books")
    assert fetched == []


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_task_is_looked_up_among_the_sources_adapters(workspace: Workspace, side: str) -> None:
    """Also where paths.zoo_source names them, whatever paths.zoo has."""
    place = workspace.zoo / side
    folders = (f"paths.zoo_source={place}", f"paths.zoo_target={place}")
    context = context_for(workspace, *(() if side == "source" else folders))
    assert given_adapter(context, "songs").content_hash() == hash_of(place / "songs")


def test_a_folder_goes_before_a_task(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace.root / "here").mkdir()
    monkeypatch.chdir(workspace.root / "here")
    Path("songs").symlink_to(workspace.zoo / "source" / "games")
    assert given_adapter(context_for(workspace), "songs").content_hash() == hash_of(
        workspace.zoo / "source" / "games"
    )


@pytest.mark.parametrize("given", ["songs", "bookz"])
def test_a_pair_that_brings_its_tasks_trains_its_zoo_for_a_task_of_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    context = context_for(workspace, "paths.zoo=null", "++pair.build_zoo=true")
    trained: list[list[str]] = []

    def train(of: RunContext, sides: tuple[str, ...], names: list[str], *_: object) -> None:
        trained.append(sorted(names))
        assert sides == ("source", "target")
        of.zoo_folder().parent.mkdir(parents=True)
        of.zoo_folder().symlink_to(workspace.zoo)

    monkeypatch.setattr(module, "train_zoo", train)
    if given == "songs":
        made = given_adapter(context, given)
        assert made.content_hash() == hash_of(workspace.zoo / "source" / "songs")
        assert trained == [sorted(TASKS)]
    else:
        with pytest.raises(AdapterError, match="adapter=bookz is no folder"):
            given_adapter(context, given)
        assert trained == []


def test_an_id_is_fetched_from_the_hub(workspace: Workspace, fetched: list[str]) -> None:
    given = given_adapter(context_for(workspace), "some-one/lora_v1.0")
    assert given.content_hash() == hash_of(workspace.zoo / "source" / "plays")
    assert fetched == ["some-one/lora_v1.0"]


@pytest.mark.parametrize("given", ["bookz", "/no/where", "a/b/c", "./books/", "~/a", ""])
def test_anything_else_is_refused_with_what_there_is(
    workspace: Workspace, fetched: list[str], monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(workspace.root)
    with pytest.raises(AdapterError) as error:
        given_adapter(context_for(workspace), given)
    assert f"adapter={given} is no" in str(error.value)
    assert ", ".join(sorted(TASKS)) in str(error.value)
    assert fetched == []


def test_without_a_zoo_no_task_is_offered(workspace: Workspace) -> None:
    with pytest.raises(AdapterError) as error:
        given_adapter(context_for(workspace, f"paths.zoo={workspace.root / 'none'}"), "books")
    assert "owner/name" in str(error.value)
    assert "zoo" not in str(error.value).replace("adapter=", "")


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no network\nand more"),
        OfflineModeIsEnabled("offline"),
        HfHubHTTPError("401", response=Mock()),
        OSError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_that_cannot_be_reached_is_told_in_one_message(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(module, "snapshot_download", fail)
    with pytest.raises(AdapterError, match=r"owner/name is no folder here.*hf auth login") as told:
        given_adapter(context_for(workspace), "owner/name")
    assert "\n" not in str(told.value)


# What an adapter is asked: by the options, by its task, or else by the text itself.

Contexts = Callable[..., RunContext]


@pytest.fixture
def context(tmp_path: Path) -> Contexts:
    """Three tasks and a zoo; called with more options of transfer.py."""
    for name in ("books", "games", "songs"):
        folder = tmp_path / "tasks" / name
        folder.mkdir(parents=True)
        facts = {"name": name, "instruction": f"What of {name}?", "labels": ["yes", "no"]}
        (folder / "task.json").write_text(json.dumps(facts))
        rows = [{"text": f"{name} {place}", "label": "yes"} for place in range(30)]
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / "test.jsonl").write_text(json.dumps({"text": f"test of {name}", "label": "no"}))
        (tmp_path / "zoo" / "source" / name).mkdir(parents=True)
    (tmp_path / "elsewhere" / "books").mkdir(parents=True)

    where = (f"paths.tasks={tmp_path}/tasks", f"paths.zoo={tmp_path}/zoo", "adapter=books")
    return partial(context_of, "transfer", *where)


def test_a_task_of_the_zoo_brings_its_instruction_and_its_labels(
    context: Contexts, tmp_path: Path
) -> None:
    asked = PromptSpec("{text}\nWhat of books?\nAnswer:", ("yes", "no"), " {label}", 200)
    assert prompt_spec(context(), "books") == asked
    assert prompt_spec(context(), str(tmp_path / "zoo" / "source" / "books")) == asked


def test_what_is_given_goes_first(context: Contexts) -> None:
    options = ["prompt.instruction='Good, or bad?'", "prompt.labels=[bad,very good]"]
    found = prompt_spec(context(*options, "prompt.text_chars=null"), "books")
    assert found.prompt == "{text}\nGood, or bad?\nAnswer:"
    assert found.labels == ("bad", "very good")
    assert found.text_chars is None


def test_an_empty_list_of_labels_means_that_it_writes_freely(context: Contexts) -> None:
    assert prompt_spec(context("prompt.labels=[]"), "books").labels == ()


@pytest.mark.parametrize("place", ["elsewhere/books", "owner/books"])
def test_of_another_adapter_of_that_name_nothing_is_known(
    context: Contexts, tmp_path: Path, place: str
) -> None:
    given = str(tmp_path / place) if place.startswith("else") else place
    found = prompt_spec(context(), given)
    assert (found.prompt, found.labels) == ("{text}", ())
    named = prompt_spec(context("prompt.labels=[a,b]"), given)
    assert (named.prompt, named.labels) == ("{text}", ("a", "b"))


def test_a_zoo_is_asked_with_the_characters_that_it_was_trained_with(
    context: Contexts, tmp_path: Path
) -> None:
    template = r"prompt.template='{text}\n{instruction}\nA:'"
    trained = context_of("anchors", f"paths.tasks={tmp_path}/tasks", template).template
    asked = prompt_spec(context(template), "books")
    assert asked.prompt == trained.prompt.replace("{instruction}", "What of books?")
    assert asked.prompt == "{text}\nWhat of books?\nA:"


def test_a_template_that_takes_what_nobody_gives(context: Contexts) -> None:
    with pytest.raises(ConfigurationError, match=r"prompt\.instruction=TEXT"):
        prompt_spec(context("prompt.template='{text} {instruction}'"), "owner/books")


def test_tasks_of_the_hub_are_described_without_a_row(context: Contexts) -> None:
    """The task's definition says it; nothing is fetched."""
    found = prompt_spec(context("paths.tasks=null", "tasks=seed30"), "sst2")
    assert found.labels == ("negative", "positive")
    assert "Classify the sentiment" in found.prompt


def test_texts_of_anchors_are_training_texts_of_neither_held_out_nor_ported_tasks(
    context: Contexts,
) -> None:
    asked = context("refine_texts.anchors=true", "tasks.held_out=[games]")
    source = anchor_texts(asked, "books")
    assert source is not None
    texts = [text for split in ("train", "validation") for text in source.texts(split)]
    assert sorted(texts) == sorted(f"songs {place}" for place in range(30))
    assert anchor_texts(context("refine_texts.anchors=false"), "books") is None
    nobody = context("refine_texts.anchors=true", "tasks.held_out=[games,songs]")
    with pytest.raises(ConfigurationError, match="none is left"):
        anchor_texts(nobody, "books")


def test_texts_of_anchors_are_taken_where_a_folder_of_tasks_is_given(context: Contexts) -> None:
    assert anchor_texts(context("tasks.held_out=[games]"), "books") is not None
    assert anchor_texts(context("tasks.held_out=[games,songs]"), "books") is None
    assert anchor_texts(context("paths.tasks=null", "tasks=seed30"), "books") is None


Q = Site(0, Role.Q)


class Passing(Mapper):
    """Gives back what it gets: the steps behind the mapper are what these tests ask about."""

    data_access = "weights only"

    def __init__(self) -> None:
        self.mapped: list[LoraAdapter] = []

    @property
    def gauge_dependent(self) -> bool:
        return False

    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        self.mapped.append(adapter)
        return adapter

    def report(self) -> Report:
        return {"number": len(self.mapped)}


@pytest.fixture(scope="module")
def sites(pico_target: BaseModel) -> SiteTable:
    return pico_target.sites


@pytest.fixture
def adapters(
    pico_target: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> list[LoraAdapter]:
    return [random_adapter(pico_target, seed) for seed in (1, 2, 3)]


def dense(adapter: LoraAdapter, site: Site = Q) -> torch.Tensor:
    return adapter[site].dense().float()


def test_without_steps_the_mapped_adapter_comes_back(
    sites: SiteTable, adapters: list[LoraAdapter]
) -> None:
    done = Porting(Passing(), sites).port(adapters[:1])
    assert done.adapter.content_hash() == adapters[0].content_hash()
    assert done.mapping == ({"number": 1},)
    assert done.steps == {}


def test_the_steps_come_in_their_order(sites: SiteTable, adapters: list[LoraAdapter]) -> None:
    """Sparsify each, then merge with the others in full, then cut, then scale, then convert."""
    sparse = Magnitude(0.5, "none")
    porting = Porting(
        Passing(),
        sites,
        sparsify=sparse,
        merge=Linear(),
        weights=[1.0, 2.0, -1.0],
        output_rank=2,
        scale=3.0,
        dtype=torch.bfloat16,
    )
    done = porting.port(adapters[:2], adapters[2:])
    sites_ = {}
    for site in adapters[0]:
        one, other = (sparse(adapter).adapter[site].dense() for adapter in adapters[:2])
        u, s, vt = torch.linalg.svd((one + 2 * other - adapters[2][site].dense()).double())
        whole = u[:, :2] * s[:2] @ vt[:2]
        sites_[site] = LowRank(vt[:2].float(), (3 * u[:, :2] * s[:2]).float())
        lost = 1 - float(whole.norm() ** 2 / s.norm() ** 2)
        assert done.steps["merge"].lost_energy[site] == pytest.approx(lost, abs=1e-5)
    assert relative_error(done.adapter, LoraAdapter(sites_, "x")) < 1e-2
    assert set(done.steps) == {"sparsify 1", "sparsify 2", "merge"}
    assert {update.A.dtype for update in done.adapter.values()} == {torch.bfloat16}
    assert {update.rank for update in done.adapter.values()} == {2}
    assert done.adapter.base_model == "pico/target"
    assert len(done.mapping) == 2


def test_sparsifying_one_adapter_is_one_step(sites: SiteTable, adapters: list[LoraAdapter]) -> None:
    done = Porting(Passing(), sites, sparsify=DropComponents(0.5)).port(adapters[:1])
    assert list(done.steps) == ["sparsify"]
    assert dense(done.adapter).allclose(
        DropComponents(0.5)(adapters[0]).adapter[Q].dense(), atol=1e-6
    )


@pytest.mark.parametrize("scale", [2.5, -1.0, 1e-3])
def test_scale_multiplies_the_update_exactly(
    sites: SiteTable, adapters: list[LoraAdapter], scale: float
) -> None:
    done = Porting(Passing(), sites, scale=scale).port(adapters[:1])
    for site, update in done.adapter.items():
        assert update.scale == adapters[0][site].scale * scale
        assert torch.equal(update.A, adapters[0][site].A)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_lower_output_rank_gives_the_nearest_update_and_tells_the_loss(
    sites: SiteTable, adapters: list[LoraAdapter], rank: int
) -> None:
    done = Porting(Passing(), sites, output_rank=rank).port(adapters[:1])
    for site, update in done.adapter.items():
        u, s, vt = torch.linalg.svd(adapters[0][site].dense().double(), full_matrices=False)
        nearest = u[:, :rank] * s[:rank] @ vt[:rank]
        torch.testing.assert_close(update.dense().double(), nearest, rtol=1e-4, atol=1e-5)
        lost = float(s[rank:].square().sum() / s.square().sum())
        assert done.steps["output_rank"].lost_energy[site] == pytest.approx(lost, rel=1e-4)
        assert update.rank == rank


@pytest.mark.parametrize("rank", [3, 64])
def test_an_output_rank_that_is_no_lower_changes_nothing(
    sites: SiteTable, adapters: list[LoraAdapter], rank: int
) -> None:
    done = Porting(Passing(), sites, output_rank=rank).port(adapters[:1])
    assert done.adapter.content_hash() == adapters[0].content_hash()
    assert done.steps == {}


def test_only_sites_above_the_output_rank_are_cut(
    sites: SiteTable, adapters: list[LoraAdapter]
) -> None:
    (whole,) = adapters[:1]
    mixed = LoraAdapter(
        {s: u if s == Q else u.truncated(1).matrix for s, u in whole.items()}, whole.base_model
    )
    done = Porting(Passing(), sites, output_rank=2).port([mixed])
    lost = done.steps["output_rank"].lost_energy
    assert [site for site, share in lost.items() if share > 0] == [Q]
    assert {site: u.rank for site, u in done.adapter.items() if u.rank == 2} == {Q: 2}


def test_one_adapter_is_merged_with_nothing(sites: SiteTable, adapters: list[LoraAdapter]) -> None:
    done = Porting(Passing(), sites, merge=Ties(0.1)).port(adapters[:1])
    assert done.adapter.content_hash() == adapters[0].content_hash()
    assert done.steps == {}


def test_weights_of_one_adapter_are_not_forgotten(
    sites: SiteTable, adapters: list[LoraAdapter]
) -> None:
    twice = Porting(Passing(), sites, merge=Linear(), weights=[2.0]).port(adapters[:1])
    torch.testing.assert_close(dense(twice.adapter), 2 * dense(adapters[0]))
    with pytest.raises(ConfigurationError, match=r"merge\.weights is \[2\.0, 1\.0\], but 1"):
        Porting(Passing(), sites, merge=Linear(), weights=[2.0, 1.0]).port(adapters[:1])


def test_adapters_of_the_target_are_merged_behind_the_ported_one(
    sites: SiteTable, adapters: list[LoraAdapter]
) -> None:
    porting = Porting(Passing(), sites, merge=WeightAverage(), weights=[3.0, 1.0])
    done = porting.port(adapters[:1], adapters[1:2])
    expected = 0.75 * dense(adapters[0]) + 0.25 * dense(adapters[1])
    torch.testing.assert_close(dense(done.adapter), expected, rtol=1e-4, atol=1e-5)
    assert {update.rank for update in done.adapter.values()} == {6}


def test_merge_of_noop_leaves_the_others(
    pico_source: BaseModel, adapters: list[LoraAdapter], sites: SiteTable, workspace: Any
) -> None:
    """A control that acts on nothing may make a zero, and another adapter may not."""
    porting = Porting(noop(workspace), sites, merge=Linear())
    source = LoraAdapter({Q: LowRank(torch.ones(1, 32), torch.ones(32, 1))}, pico_source.name)
    assert porting.port([source]).adapter.norm() == 0
    done = porting.port([source], adapters[:1])
    torch.testing.assert_close(dense(done.adapter), dense(adapters[0]))


def noop(workspace: Any) -> NoopMapper:
    from loraport.mappers import BasePair
    from loraport.models import StreamedWeights

    models = workspace.root / "models"
    source, target = (StreamedWeights.open(models / side, side) for side in ("source", "target"))
    mapper = NoopMapper()
    mapper.use(BasePair(source, target))
    return mapper


class TestRefused:
    @pytest.mark.parametrize("rank", [0])
    def test_output_rank(self, sites: SiteTable, rank: int) -> None:
        with pytest.raises(ConfigurationError, match=rf"output_rank is {rank}; it takes a whole"):
            Porting(Passing(), sites, output_rank=rank)

    @pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
    def test_scale(self, sites: SiteTable, scale: float) -> None:
        with pytest.raises(ConfigurationError, match=rf"scale is {scale}; it takes a finite"):
            Porting(Passing(), sites, scale=scale)

    def test_no_adapter(self, sites: SiteTable) -> None:
        with pytest.raises(ConfigurationError, match="no adapter to port"):
            Porting(Passing(), sites).port([])

    def test_a_zero_that_nobody_asked_for(
        self, sites: SiteTable, adapters: list[LoraAdapter]
    ) -> None:
        """PEFT starts B at zero: an adapter that was saved before training does nothing."""
        fresh = adapters[0].map(lambda u: LowRank(u.A, torch.zeros_like(u.B), u.scale))
        with pytest.raises(AdapterError, match=r"zero at every site.*give a source adapter that"):
            Porting(Passing(), sites).port([fresh])

    @pytest.mark.parametrize(
        ("factor", "dtype", "told"),
        [(1e6, "float16", "nan%"), (1e-9, "float16", "100.0%"), (1e-6, "float16", r"\d+\.\d%")],
    )
    def test_a_dtype_that_cannot_hold_the_factors(
        self, sites: SiteTable, adapters: list[LoraAdapter], factor: float, dtype: str, told: str
    ) -> None:
        odd = adapters[0].map(lambda u: LowRank(u.A, factor * u.B, u.scale))
        message = rf"dtype={dtype} cannot hold .*q_proj: .*{told} of its norm; use dtype=float32"
        with pytest.raises(AdapterError, match=message):
            Porting(Passing(), sites, dtype=getattr(torch, dtype)).port([odd])
        for other in (torch.float32, torch.bfloat16):
            kept = Porting(Passing(), sites, dtype=other).port([odd]).adapter
            assert relative_error(kept, odd) < 5e-3

    def test_a_result_that_fits_no_module(
        self, pico_source: BaseModel, sites: SiteTable, random_adapter: Callable[..., LoraAdapter]
    ) -> None:
        stranger = random_adapter(pico_source)
        message = r"mapper's result, for 'pico/source', has shape \(32, 32\) at .*\(48, 48\) there"
        with pytest.raises(AdapterError, match=message):
            Porting(Passing(), sites).port([stranger])

    def test_adapters_to_merge_with_before_anything_is_mapped(
        self,
        pico_source: BaseModel,
        sites: SiteTable,
        adapters: list[LoraAdapter],
        random_adapter: Callable[..., LoraAdapter],
    ) -> None:
        mapper = Passing()
        with pytest.raises(AdapterError, match=r"adapter of merge\.with, for 'pico/source'"):
            Porting(mapper, sites, merge=Linear()).port(adapters[:1], [random_adapter(pico_source)])
        assert mapper.mapped == []

    def test_a_site_that_the_target_lacks(
        self, sites: SiteTable, adapters: list[LoraAdapter]
    ) -> None:
        deep = LoraAdapter({Site(7, Role.Q): adapters[0][Q]}, "pico/deeper")
        with pytest.raises(AdapterError, match=r"layers\.7.*no such module"):
            Porting(Passing(), sites).port([deep])


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_a_text_a_line_each_once(tmp_path: Path) -> None:
    file = written(tmp_path, "inputs.txt", "one two\n\n  three  \none two\n{'a': 1}\n")
    assert given_inputs(file) == ("one two", "three", "{'a': 1}")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    row = '{"text": "one", "label": "x"}'
    assert given_inputs(written(tmp_path, "inputs.txt", "\ufeffone\ntwo")) == ("one", "two")
    assert given_inputs(written(tmp_path, "rows.jsonl", f"\ufeff{row}")) == ("one",)
    assert given_examples(tmp_path / "rows.jsonl", ("x", "y")) == (Example("one", "x"),)


@pytest.mark.parametrize("name", ["inputs.csv", "inputs.tsv", "inputs.json", "inputs.parquet"])
def test_a_table_is_not_read_as_texts(tmp_path: Path, name: str) -> None:
    """Its labels would stand in unlabelled inputs."""
    file = written(tmp_path, name, "text,label\nhello world,good\n")
    with pytest.raises(DataError, match=rf"is a \{file.suffix} file.*takes a file with a text a"):
        given_inputs(file)
    with pytest.raises(DataError, match=rf"is a \{file.suffix} file; examples= takes"):
        given_examples(file, ())


def test_rows_of_json(tmp_path: Path) -> None:
    # A line separator of Unicode may stand in a row of JSON as it is.
    file = written(tmp_path, "rows.jsonl", '{"text": "one\u2028two", "more": 1}\n{"text": "three"}')
    assert given_inputs(file) == ("one\u2028two", "three")


def test_examples(tmp_path: Path) -> None:
    file = written(
        tmp_path, "rows.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}'
    )
    assert given_examples(file, ("x", "y")) == (Example("a", "x"), Example("b", "y"))
    assert given_examples(file, ()) == (Example("a", "x"), Example("b", "y"))
    with pytest.raises(DataError, match=r"line 2, has the label 'y', but the labels are x, z"):
        given_examples(file, ("x", "z"))


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("inputs.txt", "", "is empty"),
        ("inputs.txt", "\n \n", "is empty"),
        ("inputs.txt", b"\xff\xfe\x00", "cannot be read"),
        ("rows.jsonl", "{", "line 1, cannot be read"),
        ("rows.jsonl", '{"text": "a"}\n[]', 'line 2, has no "text" with text'),
        ("rows.jsonl", '{"text": 3}', 'line 1, has no "text" with text'),
        ("rows.jsonl", '{"text": " "}', 'line 1, has no "text" with text'),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, name: str, content: str | bytes, named: str
) -> None:
    with pytest.raises(DataError, match=r"inputs= takes a file with a text a line") as caught:
        given_inputs(written(tmp_path, name, content))
    assert named in str(caught.value)


def test_a_row_without_a_label(tmp_path: Path) -> None:
    file = written(tmp_path, "rows.jsonl", '{"text": "a"}')
    with pytest.raises(DataError, match=r'has no "label" with text; examples= takes'):
        given_examples(file, ())


def test_examples_of_one_label_and_repeated_texts_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = '{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n{"text": "a", "label": "x"}'
    file = written(tmp_path, "rows.jsonl", rows)
    with caplog.at_level("INFO"):
        assert len(given_examples(file, ("x", "y"))) == 3
        assert given_inputs(file) == ("a", "b")
    assert [record.getMessage().replace(str(file), "FILE") for record in caplog.records] == [
        "all 3 examples in FILE have the label 'x', and tell nothing of any other",
        "1 of 3 examples in FILE repeat a text",
        "1 of 3 texts in FILE repeat another, and count once",
    ]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        given_inputs(tmp_path)


# The default port, and every refinement after a mapper, on pico models.

QUICK = QUICK_REFINEMENT["corpus_distill"]
BUDGET = ("refine=drift_budget", *QUICK_REFINEMENT["drift_budget"])
# The workspace has tasks, whose texts are taken as well unless this says otherwise.
CORPUS_ALONE = "refine_texts.anchors=false"


class Ports:
    """Runs ``transfer.py`` on the adapter ``books`` of a workspace with a corpus."""

    def __init__(self, workspace: Workspace, command: Command) -> None:
        self.workspace, self.command = workspace, command
        self.output = workspace.root / "out" / "ported"
        self.texts = workspace.root / "texts"
        write_texts(self.texts)
        (workspace.root / "work").mkdir()

    def call(self, *options: str, adapter: object = "books", corpus: bool = True) -> Outcome:
        return self.command(
            "transfer",
            *self.workspace.options(),
            *([f"paths.corpus={self.texts}"] if corpus else []),
            f"adapter={adapter}",
            f"output={self.output}",
            *options,
        )

    def ported(self, *options: str, adapter: object = "books") -> TransferReport:
        end = self.call(*options, adapter=adapter)
        assert end.code == 0, end.err
        self.out = end.out
        return TransferReport.model_validate_json((self.output / "report.json").read_bytes())

    def refused(self, *options: str, corpus: bool = True, adapter: object = "books") -> str:
        """Return the message, on one line."""
        before = contents(self.workspace.root)
        end = self.call(*options, corpus=corpus, adapter=adapter)
        assert end.code == 2, end.err
        assert "Traceback" not in end.err
        assert end.out == ""
        assert contents(self.workspace.root) == before
        return " ".join(end.err.split())

    def file(self, name: str, *rows: Any) -> Path:
        place = self.workspace.root / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        place.write_text("\n".join(lines), encoding="utf-8")
        return place


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory,
    models_and_tasks: Path,
    pico_source: BaseModel,
    pico_target: BaseModel,
) -> TransferReport:
    """The default port of ``books``, made once, in a workspace of its own."""
    folder, sides = tmp_path_factory.mktemp("plain"), {"source": pico_source, "target": pico_target}
    workspace = new_workspace(folder, models_and_tasks, sides)
    write_texts(folder / "texts")
    words = (f"paths.corpus={folder / 'texts'}", "adapter=books", f"output={folder / 'ported'}")
    assert run_command(folder, "transfer", *workspace.options(), *words, *QUICK) == 0
    return TransferReport.model_validate_json((folder / "ported" / "report.json").read_bytes())


@pytest.fixture
def ports(workspace: Workspace, command: Command) -> Ports:
    return Ports(workspace, command)


def test_without_a_mapper_an_adapter_is_distilled_on_the_corpus(ports: Ports) -> None:
    report = ports.ported(*QUICK, CORPUS_ALONE)
    refined = report.refinement
    assert refined is not None
    assert (report.mapper, refined.name) == ("noop", "corpus_distill")
    assert report.data_access == refined.data_access == "generic text"
    assert refined.question["prompt"] == "Which feeling ? {text}"
    assert refined.question["labels"] == ["good", "bad"]
    assert refined.data == {"texts": ["corpus"]}
    assert refined.measured[0]["texts"] == 16
    assert 0 <= refined.measured[0]["agreement_after"] <= 1
    assert refined.drift.mean > 0
    assert refined.drift.source_mean > 0
    assert refined.drift.texts == 6
    assert refined.expected.go is None
    assert {"diagnose", "port", "refine", "drift", "verify"} <= set(report.timing)
    written = read_adapter(ports.output)
    assert written.base_model == "pico/target"
    assert written.norm() > 0
    assert written.content_hash() == report.output.sha256
    for told in (
        "noop, corpus_distill: pico/source -> pico/target",
        "data used: 16 generic texts, chosen from 24; information class: generic text",
        "agreement with the source on 8 held-out prompts",
        "drift on 6 generic texts",
        "NO PREDICTION: no anchors of this pair were measured",
        "verified: PEFT reads 6 sites",
        "took ",
    ):
        assert told in ports.out
    # That sites of the source feed no target layer matters to no student that began from zero.
    assert "feed no target layer" not in ports.out
    card = (ports.output / "README.md").read_text()
    assert "was not trained on its task's data" in card
    assert "the refinement `corpus_distill`" in card
    assert "**NO PREDICTION: no anchors" in card


def test_stopped_and_started_again_it_ends_in_the_same_bits(
    ports: Ports, plain: TransferReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    loss = LabelStudent.loss

    def stop(self: LabelStudent, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(LabelStudent, "loss", stop)
    end = ports.call(*QUICK)
    assert end.code == 130
    assert "Traceback" not in end.err
    assert "the same command goes on from here" in " ".join(end.err.split())
    assert not ports.output.parent.exists()
    assert ports.ported(*QUICK).output.sha256 == plain.output.sha256
    assert len(calls) == 3 + 2, "of four steps two were left"


def test_a_default_port_loads_each_base_model_once(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The diagnosis, the refinement and the drift share it."""
    loads: list[str] = []
    load = AutoModelForCausalLM.from_pretrained

    def counted(folder: Any, *arguments: Any, **options: Any) -> Any:
        loads.append(Path(folder).name)
        return load(folder, *arguments, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    diagnosed = ("diagnosis.rows=120", "diagnosis.permutations=20", "force=true")
    ports.ported(*QUICK, *diagnosed)
    assert sorted(loads) == ["source", "target"]


def test_a_mapper_and_a_refinement(ports: Ports) -> None:
    report = ports.ported("mapper=copy", "refine=corpus_distill", *QUICK, "tasks.held_out=[games]")
    assert report.refinement is not None
    assert (report.mapper, report.refinement.name) == ("copy", "corpus_distill")
    # Texts of anchor tasks are taken, which is another class.
    assert report.data_access == "anchors"
    assert report.refinement.data == {"texts": ["corpus", "anchors"]}
    assert "the mapper `copy` and the refinement" in (ports.output / "README.md").read_text()
    assert "copy, corpus_distill: pico/source" in ports.out


def test_a_drift_budget(ports: Ports) -> None:
    tight = ports.ported("mapper=copy", *BUDGET, "refine.budget=0.001")
    assert tight.refinement is not None
    assert 0 < tight.refinement.drift.mean <= 0.0011
    assert tight.refinement.measured[0]["drift_before"]["mean"] > 0.0011
    assert tight.refinement.drift.budget == 0.001
    nothing = ports.ported("mapper=copy", *BUDGET, "refine.budget=0.0", "overwrite=true")
    assert nothing.output.norm == 0
    assert "the refined adapter is zero at every site" in ports.out


def test_several_adapters_are_kept_within_a_budget_each(ports: Ports) -> None:
    report = ports.ported("mapper=copy", *BUDGET, adapter="[books,games]")
    assert report.refinement is not None
    assert len(report.refinement.measured) == 2


def test_scale_and_dtype_come_after_the_refinement(ports: Ports, plain: TransferReport) -> None:
    halved = ports.ported(*QUICK, "scale=0.5", "dtype=bfloat16")
    assert halved.output.norm == pytest.approx(plain.output.norm / 2, rel=1e-2)
    assert halved.dtype == "bfloat16"


def test_unlabelled_inputs(ports: Ports) -> None:
    inputs, _ = write_inputs(ports.workspace.root)
    quick = QUICK_REFINEMENT["prompt_distill"]
    report = ports.ported("refine=prompt_distill", f"inputs={inputs}", *quick)
    assert report.data_access == "unlabelled prompts"
    assert report.refinement is not None
    assert report.refinement.data == {"texts": ["corpus", "anchors"], "inputs": 3}
    assert "3 unlabelled inputs" in ports.out
    assert "but for a few unlabelled inputs" in (ports.output / "README.md").read_text()


def test_labelled_examples(ports: Ports) -> None:
    _, examples = write_inputs(ports.workspace.root)
    quick = QUICK_REFINEMENT["few_shot"]
    report = ports.ported("refine=few_shot", f"examples={examples}", *quick)
    assert report.data_access == "few-shot"
    assert "4 labelled examples" in ports.out


def calibration(ports: Ports, **fields: Any) -> Path:
    agreements = {"plays": 0.2, "films": 0.4, "songs": 0.6, "games": 0.8, "books": 1.0}
    points = [
        {"task": task, "agreement_after": value, "gap_recovered": 0.7 + 0.01 * value}
        for task, value in agreements.items()
    ]
    given = {"pair": "local", "refinement": "corpus_distill", "features": ["agreement_after"]}
    return ports.file("anchors.json", json.dumps(given | {"points": points} | fields))


def test_what_to_expect_is_fitted_on_other_anchors_that_were_ported_alike(
    ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of eight held-out texts: what the port has learned is the concern of another test.
    more = {"agreement_gained": 7, "agreement_lost": 0, "agreement_over_constant": 0.2}
    monkeypatch.setattr("loraport.refinement.label_distillation.agreement_rows", lambda *_: more)
    report = ports.ported(*QUICK, f"calibration={calibration(ports)}")
    assert report.refinement is not None
    assert report.refinement.expected.go is None
    assert "NO PREDICTION: it is not written down what the anchors" in ports.out
    setting = report.refinement.setting
    assert (setting["mapper"], setting["texts"]) == ("noop", ["corpus", "anchors"])
    assert (setting["generic_texts"], setting["refine.selection"]) == (16, "BalancedTexts")

    file = calibration(ports, setting=setting)
    again = ports.ported(*QUICK, f"calibration={file}", "overwrite=true")
    assert again.refinement is not None
    expected = again.refinement.expected
    assert (expected.anchors, expected.go) == (4, True)
    assert expected.value == pytest.approx(0.7, abs=0.03)
    assert set(expected.features) == {"agreement_after"}
    assert expected.rise == 7 / 8
    assert "GO: expect 0.7" in ports.out
    assert "leave-one-out over 4 anchors of this pair" in ports.out

    # Nor does it say anything of what was changed behind the refinement.
    scaled = ports.ported(*QUICK, f"calibration={file}", "overwrite=true", "scale=0.001")
    assert scaled.refinement is not None
    assert scaled.refinement.expected.why_not == (
        "the anchors were measured with scale=1.0, but this port has scale=0.001"
    )


class TestRefusedRefining:
    def test_there_is_no_corpus(self, ports: Ports) -> None:
        message = ports.refused(corpus=False)
        for part in ("refine=corpus_distill", "paths.corpus=DIR", "mapper=cross_lora"):
            assert part in message

    def test_the_corpus_is_empty(self, ports: Ports) -> None:
        (ports.texts / "all.txt").write_text("\n")
        assert "0 training texts" in ports.refused(*QUICK, CORPUS_ALONE)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (["adapter=[books,games]"], "refine=corpus_distill refines one adapter"),
            (["inputs=FILE"], "refine=corpus_distill does not use inputs="),
            (["refine=prompt_distill"], "give inputs=FILE"),
            (["refine=few_shot"], "give examples=FILE"),
            (["refine=prompt_distill", "inputs=nowhere.txt"], "nowhere.txt cannot be read"),
            (["calibration=nowhere.json"], "nowhere.json cannot be read"),
            (["refine.texts=0"], "refine.texts=0"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_wrong_options(self, ports: Ports, options: list[str], named: str) -> None:
        assert named in ports.refused(*options)

    def test_an_unknown_label(self, ports: Ports) -> None:
        file = ports.file("examples.jsonl", {"text": "a film", "label": "superb"})
        message = ports.refused("refine=few_shot", f"examples={file}")
        assert "line 1, has the label 'superb', but the labels are very good, bad" in message

    def test_a_calibration_of_another_pair(self, ports: Ports) -> None:
        file = calibration(ports, pair="elsewhere")
        assert "was measured on pair=elsewhere" in ports.refused(f"calibration={file}")

    def test_nothing_was_learned(self, ports: Ports) -> None:
        end = ports.call(*QUICK, "refine.epochs=0")
        assert end.code == 1
        assert "nothing better than an adapter that is zero at every site" in " ".join(
            end.err.split()
        )
        assert not ports.output.parent.exists()

    def test_an_adapter_that_does_nothing(self, ports: Ports) -> None:
        from .test_port_refused import damage

        damage(ports.workspace.zoo / "source" / "books", "untrained")
        assert "books is zero at every site" in ports.refused(*QUICK)


# What is to be expected of an adapter, by the anchors of its pair.

AGREEMENTS = {"plays": 0.2, "films": 0.4, "songs": 0.6, "games": 0.8, "books": 1.0}
ROWS = {"held_out": 64, "agreement_gained": 30, "agreement_lost": 2}
MEASURED = {"agreement": {"after": 0.5}, "drift": {"mean": 0.1}, "notes": ["few texts"]} | ROWS
SETTING = {"mapper": "noop", "texts": ["corpus"], "generic_texts": 640, "refine.lr": 2e-3}


def calibration_with(**fields: Any) -> AnchorCalibration:
    points = [
        {"task": task, "agreement.after": value, "gap_recovered": 0.7 + 0.01 * value}
        for task, value in AGREEMENTS.items()
    ]
    given: dict[str, Any] = {"pair": "local", "refinement": "corpus_distill"}
    given |= {"features": ["agreement.after"], "setting": SETTING, "points": points}
    return AnchorCalibration.parse(json.dumps(given | fields), "anchors.json")


def told(
    tasks: tuple[str, ...] = (),
    anchors: AnchorCalibration | None = None,
    setting: dict[str, Any] = SETTING,
    measured: dict[str, Any] = MEASURED,
) -> ExpectedRecord:
    return expected(anchors or calibration_with(), "corpus_distill", setting, tasks, measured)


def test_the_task_that_is_ported_is_no_anchor() -> None:
    found = told(("books",))
    assert (found.anchors, found.go, found.why_not, found.hit_rate) == (4, True, "", None)
    assert found.value == pytest.approx(0.7, abs=0.03)
    assert found.features == {"agreement.after": 0.5}
    assert (found.rise, found.rise_ci95 is None) == (28 / 64, False)
    other = told(("other",))
    assert (other.anchors, other.hit_rate) == (5, 1.0)


@pytest.mark.parametrize(
    ("fields", "tasks", "why"),
    [
        ({"refinement": "few_shot"}, (), "were measured with refine=few_shot"),
        ({"setting": {}}, (), "it is not written down what the anchors of this pair were"),
        ({}, ("books", "games"), "only 3 other anchors"),
    ],
)
def test_where_nothing_can_be_said_it_is_told_why(
    fields: dict[str, Any], tasks: tuple[str, ...], why: str
) -> None:
    found = told(tasks, calibration_with(**fields))
    assert why in found.why_not
    assert (found.value, found.go) == (None, None)
    nothing = expected(None, "corpus_distill", SETTING, (), MEASURED)
    assert nothing.why_not == "no anchors of this pair were measured"


@pytest.mark.parametrize(
    ("changed", "theirs", "ours"),
    [
        ({"mapper": "mean"}, "mapper=noop", "mapper=mean"),
        ({"texts": ["written"]}, "texts=['corpus']", "texts=['written']"),
        ({"generic_texts": 100}, "generic_texts=640", "generic_texts=100"),
        ({"refine.lr": 1e-6}, "refine.lr=0.002", "refine.lr=1e-06"),
        ({"inputs": 32}, "inputs=nothing", "inputs=32"),
    ],
    ids=str,
)
def test_anchors_that_were_ported_otherwise_say_nothing(
    changed: dict[str, Any], theirs: str, ours: str
) -> None:
    found = told(setting=SETTING | changed)
    assert found.go is None
    assert found.why_not == (f"the anchors were measured with {theirs}, but this port has {ours}")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ({"agreement_gained": 0, "agreement_lost": 0}, "(+0.0 points of 64 held-out texts"),
        ({"agreement_gained": 20, "agreement_lost": 12}, "(+12.5 points of 64 held-out texts"),
        # The bootstrap's interval excludes 0, the sign test does not.
        ({"agreement_gained": 5, "agreement_lost": 0}, "(+7.8 points of 64 held-out texts"),
        ({"agreement_gained": 2, "agreement_lost": 30}, "(-43.8 points of 64 held-out texts"),
        ({"held_out": 0}, "it is not known on which held-out texts"),
        ({"agreement_gained": None}, "it is not known on which held-out texts"),
        (
            {"agreement_over_constant": 0.0, "agreement_constant": 0.9375},
            "no more often than one label for all texts would (94%)",
        ),
    ],
    ids=str,
)
def test_a_go_takes_a_port_that_learned_something(rows: dict[str, Any], why: str) -> None:
    found = told(measured=MEASURED | rows)
    assert found.go is None
    assert why in found.why_not
    assert told(measured=MEASURED | {"agreement_gained": 9, "agreement_lost": 0}).go is True


def test_a_feature_that_was_not_measured() -> None:
    for measured in ({"drift": {"mean": 0.1}}, {"agreement": {"after": math.nan}}):
        found = told(measured=measured | ROWS)
        assert found.why_not == "agreement.after was not measured of this adapter"


DOCUMENTED = Path(__file__).parents[2] / "docs" / "benchmark" / "results.json"


@pytest.mark.parametrize("pair", ["smollm2_gemma3", "gemma3_smollm2"])
def test_what_comes_with_loraport_was_measured_with_what_transfer_does_by_itself(pair: str) -> None:
    settings = context_of("transfer", f"pair={pair}", "adapter=any").settings
    names = {side: getattr(settings.pair, side).options["name"] for side in SIDES}
    hashes = json.loads(DOCUMENTED.read_text(encoding="utf-8"))["provenance"]["hashes"]
    update = LowRank(torch.zeros(8, 4), torch.zeros(4, 8))
    adapter = LoraAdapter({Site(0, Role.Q): update, Site(0, Role.V): update}, "any")

    def made(weights: dict[str, str]) -> dict[str, Any]:
        texts, count = ["corpus", "anchors"], {"generic_texts": 640}
        options = settings.refine.options
        return port_setting(("noop", {}), options, texts, adapter, count, weights)

    found = AnchorCalibration.packaged(pair)
    assert found is not None
    assert found.differences(made({s: hashes[f"model/{n}"] for s, n in names.items()})) == ""
    # The hub's models are other weights, in full precision; their name leads to the reason.
    hub = AnchorCalibration.packaged("of the hub", tuple(names.values()))
    assert hub == found
    other = made(dict.fromkeys(SIDES, "0123456789abcdef0123456789abcdef01234567"))
    assert "source weights=0123456789ab, target weights=0123456789ab" in found.differences(other)
