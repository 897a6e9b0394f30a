import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from loraport.adapters import LoraAdapter, LowRank, Role, Site, read_adapter, write_adapter
from loraport.data import AnchorBatch, AnchorPairs, AnchorSet, Zoo, ZooPairs, write_manifest
from loraport.exceptions import AdapterError, ConfigurationError
from loraport.models import BaseModel

MakeAdapter = Callable[..., LoraAdapter]
TASKS = ("b_task", "a_task", "c_task")


@pytest.fixture
def folder(
    pico_source: BaseModel, pico_target: BaseModel, random_adapter: MakeAdapter, tmp_path: Path
) -> Path:
    """A zoo of three tasks for the pico models."""
    for side, base in (("source", pico_source), ("target", pico_target)):
        for seed, name in enumerate(TASKS):
            write_adapter(random_adapter(base, seed), tmp_path / "zoo" / side / name)
    return tmp_path / "zoo"


def test_both_sides_are_read_by_task_from_any_two_folders(folder, tmp_path):
    (folder / "source" / "notes").mkdir()  # what is no adapter is no task
    (folder / "source" / "readme.txt").write_text("notes")
    (folder / "source").rename(tmp_path / "X")
    zoo = Zoo(tmp_path / "X", folder / "target")
    assert zoo.names() == ("a_task", "b_task", "c_task")
    pairs = zoo.read()
    for side, adapters in ((zoo.source, pairs.source), (zoo.target, pairs.target)):
        assert tuple(adapters) == zoo.names()
        for name, adapter in adapters.items():
            assert adapter.content_hash() == read_adapter(side / name).content_hash()
    assert list(zoo.read(["c_task", "a_task"]).target) == ["c_task", "a_task"]


def test_folder_of_another_layout_is_refused(folder):
    for side, missing in (("target", "target"), ("source", "source and no folder target")):
        (folder / side).rename(folder / f"not_{side}")
        with pytest.raises(AdapterError, match=rf"zoo is no zoo: .* no folder {missing}; it takes"):
            Zoo.open(folder)


def test_folder_that_does_not_exist_is_named(folder, tmp_path):
    with pytest.raises(AdapterError, match=r"nowhere does not exist"):
        Zoo(folder / "source", tmp_path / "nowhere").read()


@pytest.mark.parametrize("side", ["source", "target"])
def test_missing_partner_is_named_with_the_way_out(side, folder):
    (folder / side / "b_task").rename(folder / "elsewhere")
    zoo = Zoo.open(folder)
    message = rf"no {side} adapter b_task: .*{side} has a_task, c_task.*side={side} .*=\[b_task\]"
    for names in (None, ["b_task"]):
        with pytest.raises(AdapterError, match=message):
            zoo.read(names)
    assert zoo.names() == ("a_task", "c_task")
    assert list(zoo.read(["a_task"]).source) == ["a_task"]


def test_adapter_of_another_base_is_named(folder):
    stranger = replace(read_adapter(folder / "target" / "c_task"), base_model="other/base")
    write_adapter(stranger, folder / "target" / "c_task", overwrite=True)
    with pytest.raises(
        AdapterError,
        match=r"adapter c_task was trained on 'other/base', but a_task on 'pico/t",
    ):
        Zoo.open(folder).read()
    assert len(Zoo.open(folder).read(["a_task", "b_task"]).target) == 2


def test_manifest_holds_the_facts_and_the_hash_of_every_adapter(folder):
    write_manifest(folder, {"pair": "pico", "seed": 3})
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["pair"], manifest["seed"]) == ("pico", 3)
    expected = {
        f"{side}/{name}": hashlib.sha256(
            (folder / side / name / "adapter_model.safetensors").read_bytes()
        ).hexdigest()
        for side in ("source", "target")
        for name in TASKS
    }
    assert {key: value["sha256"] for key, value in manifest["adapters"].items()} == expected
    (folder / "target").rename(folder.parent / "elsewhere")
    write_manifest(folder, {})
    assert set(json.loads((folder / "manifest.json").read_text())["adapters"]) == {
        f"source/{name}" for name in TASKS
    }


NAMES = [f"t{place}" for place in range(10)]
SITES = {"source": {Site(0, Role.Q): (4, 3)}, "target": {Site(0, Role.Q): (5, 6)}}


def adapter(side: str, seed: int, rank: int = 2, role: Role = Role.Q) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for site, (out, in_) in SITES[side].items():
        a = torch.randn(rank, in_, generator=generator)
        b = torch.randn(out, rank, generator=generator)
        updates[Site(site.layer, role)] = LowRank(a, b)
    return LoraAdapter(updates, f"pico/{side}")


ZOO = ZooPairs(
    {name: adapter("source", seed) for seed, name in enumerate(NAMES)},
    {name: adapter("target", 50 + seed) for seed, name in enumerate(NAMES)},
)


def places(loader: object) -> list[list[int]]:
    assert isinstance(loader, DataLoader)
    batches = list(loader)
    assert all(isinstance(batch, AnchorBatch) for batch in batches)
    return [batch.places.tolist() for batch in batches]


class TestAnchorSet:
    def test_pairs_keep_the_order_of_the_names(self):
        anchors, site = AnchorSet.of(ZOO, ["t3", "t7", "t1"]), Site(0, Role.Q)
        assert (anchors.source_base, anchors.target_base) == ("pico/source", "pico/target")
        chosen = anchors.select([2, 0])
        assert (anchors.names, chosen.names) == (("t3", "t7", "t1"), ("t1", "t3"))
        for some in (anchors, chosen):
            for place, name in enumerate(some.names):
                assert torch.equal(some.source[site].B[place], ZOO.source[name][site].B)
                assert torch.equal(some.target[site].A[place], ZOO.target[name][site].A)

    @pytest.mark.parametrize("side", ["source", "target"])
    @pytest.mark.parametrize(
        ("odd", "message"),
        [
            ({"rank": 3}, r"has rank 3 .*0\.self_attn\.q_proj, but adapter {side}/t0 has rank 2"),
            ({"role": Role.K}, r"has nothing at .*q_proj, but adapter {side}/t0 has rank 2"),
        ],
        ids=["rank", "site"],
    )
    def test_adapters_that_differ_are_named_with_their_side(self, side, odd, message):
        sides = {"source": dict(ZOO.source), "target": dict(ZOO.target)}
        sides[side]["t4"] = adapter(side, 4, **odd)
        with pytest.raises(AdapterError, match=f"adapter {side}/t4 " + message.format(side=side)):
            AnchorPairs(ZooPairs(**sides), ["t9"])


class TestHeldOut:
    def test_fixed_tasks_are_queries_and_no_anchors(self):
        data = AnchorPairs(ZOO, ["t8", "t3", "no such task"])
        assert data.held_out == ("t8", "t3")
        assert data.anchors.names == tuple(name for name in NAMES if name not in ("t3", "t8"))
        assert list(data.queries) == list(data.oracles) == ["t8", "t3"]
        assert data.queries["t3"] is ZOO.source["t3"]
        assert data.oracles["t3"] is ZOO.target["t3"]
        assert [spare.content_hash() for spare in data.spare] == [ZOO.source["t0"].content_hash()]

    @pytest.mark.parametrize("folds", [2, 3, 10])
    def test_folds_part_all_tasks(self, folds):
        parts = [AnchorPairs(ZOO, ["t8"], folds=folds, fold=f).held_out for f in range(folds)]
        assert sorted(itertools.chain(*parts)) == NAMES
        assert max(map(len, parts)) - min(map(len, parts)) <= 1

    def test_folds_are_drawn_by_the_seed(self):
        one, other = (AnchorPairs(ZOO, [], folds=2, seed=seed).held_out for seed in (0, 1))
        assert one == AnchorPairs(ZOO, [], folds=2, seed=0).held_out
        assert one not in (other, tuple(NAMES[:5]))

    @pytest.mark.parametrize(("folds", "fold"), [(1, 0), (11, 0), (3, 3), (3, -1)])
    def test_folds_that_there_cannot_be(self, folds, fold):
        with pytest.raises(
            ConfigurationError,
            match=rf"data\.folds={folds} with data\.fold={fold} does not divide 10 tasks",
        ):
            AnchorPairs(ZOO, [], folds=folds, fold=fold)


class TestValidation:
    def test_it_is_a_share_of_the_anchors_apart_from_training(self):
        data = AnchorPairs(ZOO, ["t8", "t3"], validation=0.25)
        left_out = data.validation_anchors
        assert left_out is not None
        assert len(left_out.names) == 2
        assert set(left_out.names).isdisjoint(data.training_anchors.names)
        assert sorted((*left_out.names, *data.training_anchors.names)) == list(data.anchors.names)

    def test_it_is_drawn_by_the_seed_whatever_the_order_of_the_zoo(self):
        names = NAMES[::-1]
        backwards = ZooPairs(
            {name: ZOO.source[name] for name in names}, {name: ZOO.target[name] for name in names}
        )
        left_out = [
            data.validation_anchors.names
            for seed, zoo in ((0, ZOO), (0, backwards), (1, ZOO))
            if (data := AnchorPairs(zoo, ["t8"], validation=0.3, seed=seed)).validation_anchors
        ]
        assert len(left_out) == 3
        assert left_out[0] == left_out[1]
        assert left_out[0] != left_out[2]

    def test_without_a_share_there_is_none(self):
        data = AnchorPairs(ZOO, ["t8"])
        assert data.validation_anchors is None
        assert data.val_dataloader() == []

    @pytest.mark.parametrize(
        ("held_out", "validation", "message"),
        [
            (NAMES[:9], 0.0, r"of 10 tasks 9 are held out and 0 are for validation"),
            (
                NAMES[:2],
                0.9,
                r"tasks 2 are held out and 7 are for validation.*fewer than two",
            ),
        ],
    )
    def test_too_few_anchors_are_refused(self, held_out, validation, message):
        with pytest.raises(ConfigurationError, match=message):
            AnchorPairs(ZOO, held_out, validation=validation)


class TestBatches:
    def test_an_epoch_has_every_training_anchor_once_in_a_seeded_order(self):
        data = AnchorPairs(ZOO, ["t8"], validation=0.2, batch_size=3)
        batches = places(data.train_dataloader())
        assert [len(batch) for batch in batches] == [3, 3, 1]
        seen = [data.anchors.names[place] for place in itertools.chain(*batches)]
        assert sorted(seen) == list(data.training_anchors.names)
        assert seen != sorted(seen)
        one, same, other = (
            places(AnchorPairs(ZOO, ["t8"], seed=seed).train_dataloader()) for seed in (0, 0, 1)
        )
        assert one == same != other

    def test_validation_anchors_come_in_order(self):
        data = AnchorPairs(ZOO, ["t8"], validation=0.4, batch_size=3)
        batches = places(data.val_dataloader())
        assert data.validation_anchors is not None
        seen = [data.anchors.names[place] for place in itertools.chain(*batches)]
        assert seen == list(data.validation_anchors.names)


class TestAnchorsDrawn:
    def test_fewer_anchors_are_a_part_of_more(self):
        drawn = [
            set(AnchorPairs(ZOO, ["t9"], anchors=count, seed=3).anchors.names)
            for count in range(2, 10)
        ]
        assert [len(names) for names in drawn] == list(range(2, 10))
        assert all(few < more for few, more in itertools.pairwise(drawn))
        assert drawn[-1] == set(NAMES[:9]) == set(AnchorPairs(ZOO, ["t9"]).anchors.names)

    def test_the_seed_decides_which(self):
        drawn = {AnchorPairs(ZOO, ["t9"], anchors=3, seed=seed).anchors.names for seed in range(20)}
        assert len(drawn) > 10
        assert all(list(names) == sorted(names) for names in drawn)

    @pytest.mark.parametrize("count", [0, 1, 10])
    def test_a_number_that_cannot_be_had_is_refused(self, count):
        with pytest.raises(ConfigurationError, match=r"but 9 tasks .* from 2 to 9, or null"):
            AnchorPairs(ZOO, ["t9"], anchors=count)
