import copy
import json
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site, read_adapter, write_adapter
from loraport.adapters.merge import Linear
from loraport.adapters.sparsify import Magnitude
from loraport.commands.context import RunContext
from loraport.commands.port import anchor_scores
from loraport.commands.porting import Porting
from loraport.evaluation.records import TransferReport
from loraport.evaluation.scoring import LikelihoodScorer
from loraport.exceptions import AdapterError, DataError
from loraport.mappers import BasePair
from loraport.mappers.controls import CopyMapper
from loraport.models import BaseModel, SiteTable, StreamedWeights, attached

from .conftest import HELD_OUT, Command, Outcome, Workspace, context_of


def choosing(workspace: Workspace, *words: str) -> RunContext:
    asked = ["prompt.template='{text} {instruction}'", "prompt.text_chars=99", "choose.rows=4"]
    options = [*workspace.options(), f"tasks.held_out=[{','.join(HELD_OUT)}]", *asked]
    return context_of("transfer", *options, "adapter=films", "mapper=copy", *words)


@pytest.fixture
def mapper(workspace: Workspace) -> CopyMapper:
    models = workspace.root / "models"
    source, target = (
        StreamedWeights.open(models / side, f"pico/{side}") for side in ("source", "target")
    )
    mapper = CopyMapper()
    mapper.use(BasePair(source, target))
    return mapper


@pytest.fixture
def sites(pico_target: BaseModel) -> SiteTable:
    return pico_target.sites


def test_each_anchor_is_ported_in_the_same_way_and_scored(
    workspace: Workspace, mapper: CopyMapper, sites: SiteTable
) -> None:
    context = choosing(workspace, "choose.anchors=[songs,plays]")
    porting = Porting(mapper, sites, scale=0.5, output_rank=1)
    found = anchor_scores(context, porting)
    assert (found["rows"], set(found["anchors"])) == (4, {"songs", "plays"})
    task = context.task_source().load(["songs"])["songs"].limited(4)
    target = context.model("target")
    scorer = LikelihoodScorer(4096)
    ported = porting.port([read_adapter(workspace.zoo / "source" / "songs")]).adapter
    conditions: dict[str, LoraAdapter | None] = {
        "base": None,
        "ported": ported,
        "oracle": read_adapter(workspace.zoo / "target" / "songs"),
    }
    facts = found["anchors"]["songs"]
    for name, adapter in conditions.items():
        with attached(target.network, adapter):
            expected = scorer.score(target, task, context.template)
        assert expected.nll is not None
        assert facts["nll"][name] == pytest.approx(expected.nll, abs=1e-6)
        assert facts["accuracy"][name] == expected.accuracy
    assert len(set(facts["nll"].values())) == 3
    assert facts["nll_gain"] == facts["nll"]["base"] - facts["nll"]["ported"]
    gains = [row["nll_gain"] for row in found["anchors"].values()]
    assert found["mean_nll_gain"] == pytest.approx(sum(gains) / 2)


def test_the_merging_with_adapters_of_the_target_is_left_out(
    workspace: Workspace, mapper: CopyMapper, sites: SiteTable
) -> None:
    context = choosing(workspace, "choose.anchors=songs")
    plain = anchor_scores(context, Porting(mapper, sites))
    merging = Porting(mapper, sites, merge=Linear(), weights=[1.0, 5.0])
    assert anchor_scores(context, merging) == plain


def test_without_anchors_nothing_is_opened(
    workspace: Workspace, mapper: CopyMapper, sites: SiteTable
) -> None:
    context = choosing(workspace, "paths.zoo=/nowhere", "paths.tasks=/nowhere")
    assert anchor_scores(context, Porting(mapper, sites)) == {}


def test_a_scorer_without_likelihood_gives_no_value(
    workspace: Workspace, mapper: CopyMapper, sites: SiteTable
) -> None:
    context = choosing(workspace, "choose.anchors=[songs]", "evaluation.scoring=generate")
    found = anchor_scores(context, Porting(mapper, sites))
    assert found["anchors"]["songs"]["nll_gain"] is None
    assert found["anchors"]["songs"]["accuracy"]["base"] is not None
    assert found["mean_nll_gain"] is None


def test_anchors_that_the_zoo_or_the_tasks_lack_are_named(
    workspace: Workspace, mapper: CopyMapper, sites: SiteTable
) -> None:
    porting = Porting(mapper, sites)
    context = choosing(workspace, "choose.anchors=[songz]")
    with pytest.raises(AdapterError, match=r"no \w+ adapter songz: .* has .*songs"):
        anchor_scores(context, porting)
    for side in ("source", "target"):
        (workspace.zoo / side / "songs").rename(workspace.zoo / side / "hymns")
    context = choosing(workspace, "choose.anchors=[hymns]")
    with pytest.raises(DataError, match="hymns"):
        anchor_scores(context, porting)


def test_where_it_is_asked_for_each_anchor_is_merged_too(
    workspace: Workspace, mapper: CopyMapper, sites: SiteTable
) -> None:
    other = workspace.zoo / "target" / "songs"
    words = (f"merge.with=[{other}]", "choose.anchors=[plays]")
    context = choosing(workspace, *words, "choose.merged=true")
    porting = Porting(mapper, sites, merge=Linear(), weights=(0.25, 0.75))
    others = [read_adapter(other)]
    given = read_adapter(workspace.zoo / "source" / "plays")
    found = anchor_scores(context, porting, others)
    target, task = (
        context.model("target"),
        context.task_source().load(["plays"])["plays"].limited(4),
    )
    merged = context.scores.score(target, porting.port([given], others).adapter, task)
    alone = context.scores.score(target, Porting(mapper, sites).port([given]).adapter, task)
    assert found["anchors"]["plays"]["nll"]["ported"] == merged.nll != alone.nll
    plain = choosing(workspace, *words)
    unmerged = anchor_scores(plain, porting, others)["anchors"]["plays"]["nll"]
    assert unmerged["ported"] != merged.nll


FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "report.json"]
IDS = torch.tensor([[1, 5, 60, 7, 200, 33, 90]])
# Each target layer's source layer, by relative depth.
DEPTH = {0: 0, 1: 1, 2: 1}


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        yield


def logits_with(base: BaseModel, folder: Path | None) -> Tensor:
    """Return the logits of a copy of a base model with what PEFT reads from a folder."""
    network = copy.deepcopy(base.network)
    with quiet():
        model = network if folder is None else PeftModel.from_pretrained(network, str(folder))
        logits: Tensor = model.eval()(input_ids=IDS).logits
    return logits


def deltas(model: PeftModel) -> dict[Site, Tensor]:
    """Return what PEFT adds to each weight."""
    found = {}
    for name, module in model.named_modules():
        site = Site.parse(name.removeprefix("base_model.model."))
        if site is not None and hasattr(module, "get_delta_weight") and module.lora_A:
            found[site] = module.get_delta_weight("default").detach().float()
    return found


def copied(given: dict[Site, Tensor], target: BaseModel) -> dict[Site, Tensor]:
    """Copy the dense updates of the source by hand, as ``mapper=copy`` should."""
    made = {}
    for site, shape in target.sites.shapes.items():
        old = given.get(Site(DEPTH[site.layer], site.role))
        if old is not None:
            made[site] = torch.zeros(shape)
            rows, columns = (min(one, other) for one, other in zip(old.shape, shape, strict=True))
            made[site][:rows, :columns] = old[:rows, :columns]
    return made


def assert_is(adapter: LoraAdapter, expected: dict[Site, Tensor], near: float = 1e-5) -> None:
    assert set(adapter) == set(expected)
    for site, update in adapter.items():
        torch.testing.assert_close(update.dense(), expected[site], rtol=1e-4, atol=near)


class Transfers:
    """Runs ``transfer.py`` on a workspace, by default on the adapter ``books``."""

    def __init__(self, workspace: Workspace, command: Command) -> None:
        self.workspace = workspace
        self.command = command
        self.output = workspace.root / "out" / "ported"

    def call(self, *options: str, adapter: object = None) -> Outcome:
        given = adapter or self.workspace.zoo / "source" / "books"
        return self.command(
            "transfer",
            *[word for word in options if word.startswith("-")],
            *self.workspace.options(),
            f"adapter={given}",
            *([] if any("output=" in word for word in options) else [f"output={self.output}"]),
            *[word for word in options if not word.startswith("-")],
        )

    def copied(self, target: BaseModel, name: str = "books") -> dict[Site, Tensor]:
        given = read_adapter(self.workspace.zoo / "source" / name)
        return copied({site: update.dense() for site, update in given.items()}, target)

    def ported(self, *options: str, adapter: object = None) -> LoraAdapter:
        end = self.call(*options, adapter=adapter)
        assert end.code == 0, end.err
        return read_adapter(self.output)

    @property
    def report(self) -> TransferReport:
        return TransferReport.model_validate_json((self.output / "report.json").read_bytes())


@pytest.fixture
def transfers(workspace: Workspace, command: Command) -> Transfers:
    return Transfers(workspace, command)


@pytest.mark.parametrize(
    "options",
    [
        ["mapper=cross_lora", "mapper.variant=typed", "mapper.rank=8"],
        ["mapper=noop", "refine=none"],
    ],
    ids=" ".join,
)
def test_a_transfer_leaves_an_adapter_with_card_and_report(
    transfers: Transfers, pico_target: BaseModel, options: list[str]
) -> None:
    mapper = options[0].removeprefix("mapper=")
    end = transfers.call(*options)
    assert end.code == 0, end.err
    folder, report = transfers.output, transfers.report
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["ported"]
    for path in (folder, *folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044, path

    plain, changed = logits_with(pico_target, None), logits_with(pico_target, folder)
    if mapper == "noop":
        assert torch.equal(changed, plain)
    else:
        assert float((changed - plain).abs().max()) > 0.01
    written = read_adapter(folder)
    assert written.base_model == "pico/target"
    assert len(written) == 6  # q and v of three layers

    assert report.mapper == mapper
    assert report.data_access == "weights only"
    assert (report.pair.source, report.pair.target) == ("pico/source", "pico/target")
    assert report.output.sites == report.verification["sites"] == 6
    assert report.output.sha256 == written.content_hash()
    assert (
        report.adapters[0].sha256
        == read_adapter(transfers.workspace.zoo / "source" / "books").content_hash()
    )
    assert report.provenance.hashes.keys() == {
        "source model",
        "target model",
        report.adapters[0].place,
    }
    assert set(report.timing) == {"read", "diagnose", "open", "port", "verify", "choose"}
    assert set(report.mapping[0]["sites"]) == {site.label for site in written}

    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["base_model"] == "pico/target"
    assert head["library_name"] == "peft"
    assert f"`{mapper}`" in card
    assert f"{mapper}: pico/source -> pico/target" in end.out
    assert re.search(r"^\s*q\s+3\b", end.out, re.MULTILINE)
    assert "2 target sites share the source site that feeds them with another" in end.out
    assert "verified: PEFT reads 6 sites" in end.out
    assert end.out.splitlines()[-1] == f"adapter  {folder}"


def test_without_output_the_adapter_lies_in_the_runs_folder(transfers: Transfers) -> None:
    end = transfers.call("mapper=copy", "output=null")
    assert end.code == 0, end.err
    (folder,) = (transfers.workspace.root / "work" / "outputs" / "transfer").iterdir()
    assert sorted(path.name for path in (folder / "adapter").iterdir()) == FILES
    assert (folder / ".hydra" / "config.yaml").is_file()


def test_the_same_command_gives_the_same_bits_with_a_cold_and_a_warm_cache(
    transfers: Transfers,
) -> None:
    first = transfers.ported("mapper=cross_lora").content_hash()
    factors = list((transfers.workspace.root / "cache" / "factors").rglob("*.safetensors"))
    assert len(factors) == 4 + 6
    weights = (transfers.output / "adapter_model.safetensors").read_bytes()
    second = transfers.ported("mapper=cross_lora", "overwrite=true")
    assert second.content_hash() == first
    assert (transfers.output / "adapter_model.safetensors").read_bytes() == weights


class TestGiven:
    def test_a_task_of_the_zoo(self, transfers: Transfers, pico_target: BaseModel) -> None:
        by_name = transfers.ported("mapper=copy", adapter="songs")
        assert transfers.report.adapters[0].place == "songs"
        assert_is(by_name, transfers.copied(pico_target, "songs"))

    def test_another_base_models_name_is_a_warning(self, transfers: Transfers) -> None:
        folder = transfers.workspace.zoo / "source" / "books"
        file = folder / "adapter_config.json"
        options = json.loads(file.read_text())
        file.write_text(json.dumps(options | {"base_model_name_or_path": "pico/older"}))
        end = transfers.call("mapper=copy")
        assert end.code == 0
        (warning,) = transfers.report.warnings
        assert "pico/older" in warning
        assert "pico/source" in warning
        assert warning in end.out
        card = (transfers.output / "README.md").read_text()
        assert f"- {warning.removeprefix(f'{folder.parent}/')}\n" in card
        assert str(folder.parent) not in card

    def test_a_site_that_does_nothing_is_a_warning(self, transfers: Transfers) -> None:
        given = read_adapter(transfers.workspace.zoo / "source" / "books")
        idle = Site(0, Role.V)
        sites = {s: u if s != idle else LowRank(u.A, 0 * u.B) for s, u in given.items()}
        write_adapter(LoraAdapter(sites, "pico/source"), transfers.workspace.root / "idle")
        transfers.ported("mapper=cross_lora", adapter=transfers.workspace.root / "idle")
        assert transfers.report.warnings == (
            "1 of 6 sites have an update of zero, and do nothing on the target",
        )


LAYER_1 = ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "all roles": {"target_modules": ALL},
    "all-linear": {"target_modules": "all-linear"},
    "q and v": {},
    "MLP only": {"target_modules": ALL[4:]},
    "rsLoRA": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"1\..*v_proj": 3}},
    "layers_to_transform": {"layers_to_transform": [1]},
    "regex": {"target_modules": r".*\.(0|1)\.self_attn\.(k|o)_proj"},
    "full names": {"target_modules": LAYER_1},
    "rank 1": {"r": 1, "target_modules": ALL},
    "rank 256": {"r": 256, "target_modules": ALL},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
}


def peft_source(base: BaseModel, folder: Path, **options: Any) -> dict[Site, Tensor]:
    """Save a LoRA that PEFT itself puts on the source, and return what it adds to each weight."""
    dtype = options.pop("dtype", torch.float32)
    given: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "v_proj"],
    } | options
    generator = torch.Generator().manual_seed(3)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(base.network), LoraConfig(**given))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                drawn = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.data = drawn.to(dtype)
        model.save_pretrained(str(folder), save_embedding_layers=False)
    return deltas(model)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_that_can_be_read_goes_through(
    mapper: CopyMapper, pico_source: BaseModel, pico_target: BaseModel, name: str, tmp_path: Path
) -> None:
    """The reference is PEFT at both ends, and the copy of the dense updates by hand."""
    given = peft_source(pico_source, tmp_path / "given", **VARIANTS[name])
    ported = Porting(mapper, pico_target.sites).port([read_adapter(tmp_path / "given")]).adapter
    write_adapter(ported, tmp_path / "ported")
    with quiet():
        made = deltas(
            PeftModel.from_pretrained(copy.deepcopy(pico_target.network), str(tmp_path / "ported"))
        )
    expected = copied(given, pico_target)
    assert set(made) == set(expected)
    for site, delta in made.items():
        torch.testing.assert_close(delta, expected[site], rtol=1e-2, atol=1e-4)


class TestOptions:
    def test_an_adapter_that_exists_is_replaced_only_when_asked(self, transfers: Transfers) -> None:
        transfers.ported("mapper=copy")
        before = {path.name: path.read_bytes() for path in transfers.output.iterdir()}
        end = transfers.call("mapper=random")
        assert end.code == 2
        assert "exists already" in end.err
        assert "overwrite=true" in end.err
        assert {p.name: p.read_bytes() for p in transfers.output.iterdir()} == before
        transfers.ported("mapper=random", "overwrite=true")
        assert transfers.report.mapper == "random"
        assert [path.name for path in transfers.output.parent.iterdir()] == ["ported"]

    def test_the_adapter_may_be_replaced_by_what_it_becomes(
        self, transfers: Transfers, pico_target: BaseModel
    ) -> None:
        """It is read before it is replaced."""
        folder = transfers.workspace.zoo / "source" / "books"
        expected = transfers.copied(pico_target)
        end = transfers.call("mapper=copy", "overwrite=true", f"output={folder}")
        assert end.code == 0, end.err
        assert_is(read_adapter(folder), expected)


class TestLearned:
    def checkpoint(self, transfers: Transfers, *options: str) -> Path:
        end = transfers.command("train", *transfers.workspace.training(), *options)
        assert end.code == 0, end.err
        (folder,) = (transfers.workspace.root / "work").glob("outputs/train/*")
        return folder / "mapper.ckpt"

    def test_a_checkpoint_gives_what_training_predicted(self, transfers: Transfers) -> None:
        checkpoint = self.checkpoint(transfers, "mapper=global_ridge")
        predicted = read_adapter(checkpoint.parent / "adapters" / "books")
        named = transfers.ported(f"ckpt={checkpoint}", "mapper=global_ridge")
        end = transfers.call(f"ckpt={checkpoint}", "overwrite=true")
        assert end.code == 0, end.err
        ported = read_adapter(transfers.output)
        assert ported.content_hash() == named.content_hash() == predicted.content_hash()
        assert ported.base_model == predicted.base_model == "pico/target"
        report = transfers.report
        assert (report.mapper, report.data_access) == ("global_ridge", "anchors")
        assert report.mapping[0]["anchors"] == ["films", "plays", "songs"]
        card = (transfers.output / "README.md").read_text()
        assert '"ckpt": "mapper.ckpt"' in card
        assert "CrossLora" not in card
        assert "verified: PEFT reads 6 sites" in end.out

    def test_a_checkpoint_of_another_mapper_or_of_none_is_refused(
        self, transfers: Transfers
    ) -> None:
        checkpoint = self.checkpoint(transfers, "mapper=mean")
        end = transfers.call(f"ckpt={checkpoint}", "mapper=global_ridge")
        assert end.code == 2
        assert "holds a MeanMapper, but mapper=global_ridge is a GlobalRidgeMapper" in end.err
        whole = checkpoint.read_bytes()
        checkpoint.write_bytes(whole[: len(whole) // 2])
        end = transfers.call(f"ckpt={checkpoint}")
        assert end.code == 2, end.err
        assert "the checkpoint of a known mapper" in end.err
        assert "Traceback" not in end.err
        checkpoint.unlink()
        end = transfers.call(f"ckpt={checkpoint}")
        assert end.code == 2
        assert str(checkpoint) in end.err
        assert not transfers.output.parent.exists()

    def test_without_a_checkpoint_the_command_to_train_is_named(self, transfers: Transfers) -> None:
        end = transfers.call("mapper=pca_mlp")
        assert end.code == 2
        assert "python train.py mapper=pca_mlp pair=local" in " ".join(end.err.split())
        assert "ckpt=" in end.err
        assert not transfers.output.parent.exists()

    def test_a_mapper_that_needs_no_training_is_not_trained(
        self, workspace: Workspace, command: Command
    ) -> None:
        end = command("train", *workspace.training(), "mapper=cross_lora")
        assert end.code == 2
        assert "mapper=cross_lora has nothing to train" in end.err
        assert "python transfer.py mapper=cross_lora" in end.err
        assert not list((workspace.root / "work").iterdir())


class TestSteps:
    def test_every_option_of_a_step_arrives(
        self, transfers: Transfers, mapper: CopyMapper, pico_target: BaseModel
    ) -> None:
        other = transfers.workspace.zoo / "target" / "films"
        ported = transfers.ported(
            *("mapper=copy", "sparsify=magnitude", "sparsify.p=0.8", "sparsify.rescale=norm"),
            *("merge=linear", f"merge.with={other}", "merge.weights=[2,-1]"),
            *("output_rank=2", "scale=-0.25", "dtype=bfloat16"),
        )
        steps = Porting(
            mapper,
            pico_target.sites,
            sparsify=Magnitude(0.8, "norm"),
            merge=Linear(),
            weights=[2.0, -1.0],
            output_rank=2,
            scale=-0.25,
            dtype=torch.bfloat16,
        )
        given = read_adapter(transfers.workspace.zoo / "source" / "books")
        expected = steps.port([given], [read_adapter(other)])
        assert ported.content_hash() == expected.adapter.content_hash()
        report = transfers.report
        assert [step.name for step in report.steps] == ["sparsify", "merge"]
        assert report.steps[0].options["p"] == 0.8
        assert report.steps[1].options["method"]["_target_"].endswith("Linear")
        assert [step.lost_energy for step in report.steps] == [
            pytest.approx(step.total_lost_energy, rel=1e-5) for step in expected.steps.values()
        ]
        assert [record.place for record in report.merged_with] == [str(other)]
        assert (report.scale, report.dtype, report.output.ranks) == (-0.25, "bfloat16", (2, 2))
        card = (transfers.output / "README.md").read_text()
        assert f"`{other.name}`" in card
        assert f"merge: cutting back to the rank lost {report.steps[1].lost_energy:.1%}" in card

    def test_sparsified_adapters_are_merged(
        self, transfers: Transfers, pico_target: BaseModel
    ) -> None:
        sparsified = ("sparsify=rank", "sparsify.p=0.01")
        both = transfers.ported("mapper=copy", *sparsified, "merge=linear", adapter="[books,games]")
        one, other = (transfers.copied(pico_target, name) for name in ("books", "games"))
        assert_is(both, {site: one[site] + other[site] for site in one})
        report = transfers.report
        assert [record.place for record in report.adapters] == ["books", "games"]
        assert len(report.mapping) == 2
        assert [step.name for step in report.steps] == ["sparsify 1", "sparsify 2", "merge"]

    def test_an_adapter_of_the_source_is_not_merged(self, transfers: Transfers) -> None:
        stranger = transfers.workspace.zoo / "source" / "films"
        end = transfers.call("mapper=copy", f"merge.with=[{stranger}]")
        assert end.code == 2
        assert "the adapter of merge.with, for 'pico/source', has shape" in end.err
        assert not transfers.output.parent.exists()


class TestChoice:
    def test_a_sweep_scores_anchors_and_keeps_every_adapter(self, transfers: Transfers) -> None:
        end = transfers.call(
            *("-m", "mapper=copy", "sparsify=dare", "sparsify.p=0.2,0.5"),
            *("choose.anchors=[songs,plays]", "choose.rows=4", "output=null"),
            "tasks.held_out=[books,games]",
        )
        assert end.code == 0, end.err
        (sweep,) = (transfers.workspace.root / "work" / "multirun" / "transfer").iterdir()
        reports = [
            TransferReport.model_validate_json((sweep / n / "adapter" / "report.json").read_bytes())
            for n in "01"
        ]
        assert [report.steps[0].options["p"] for report in reports] == [0.2, 0.5]
        gains = [report.anchor_scores["mean_nll_gain"] for report in reports]
        assert gains[0] != gains[1]
        for report in reports:
            scores = report.anchor_scores["anchors"]
            assert set(scores) == {"songs", "plays"}
            assert set(scores["songs"]["nll"]) == {"base", "ported", "oracle"}
        base, oracle = (
            {r.anchor_scores["anchors"]["songs"]["nll"][name] for r in reports}
            for name in ("base", "oracle")
        )
        assert len(base) == len(oracle) == 1
