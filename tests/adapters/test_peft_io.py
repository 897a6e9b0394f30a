import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor

from loraport.adapters import (
    LoraAdapter,
    LowRank,
    Role,
    Site,
    peft_config,
    read_adapter,
    write_adapter,
)
from loraport.adapters.peft_io import PeftConfig
from loraport.exceptions import AdapterError, OutputError
from loraport.models import BaseModel, attached

Q_AND_V = ["q_proj", "v_proj"]
ALL_SITES = [Site(layer, role) for layer in (0, 1) for role in Role]
OPTIONS: dict[str, dict[str, Any]] = {
    "rslora": {"target_modules": Q_AND_V, "use_rslora": True},
    "first of two patterns": {
        "target_modules": Q_AND_V,
        "rank_pattern": {r"layers.0.self_attn.q_proj": 1, "q_proj": 2, r".*\.q_proj": 3},
        "alpha_pattern": {r"^model\.layers\.1\..*v_proj": 1.5, "v_proj": 7},
    },
    "pattern that is no suffix": {
        "target_modules": Q_AND_V,
        "rank_pattern": {"proj": 2, "_proj": 3},
    },
    "negative alpha, of zero at one module": {
        "target_modules": Q_AND_V,
        "lora_alpha": -4,
        "alpha_pattern": {"v_proj": 0},
    },
    "one layer": {"target_modules": Q_AND_V, "layers_to_transform": 0},
    "layers pattern": {
        "target_modules": [*Q_AND_V, "model.layers.0.self_attn.k_proj"],
        "layers_to_transform": [1],
        "layers_pattern": ["h", "lay.*"],
    },
    "expression for a part of the name": {"target_modules": r".*0\.mlp\.gate_proj|v_proj"},
    "all linear but some": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "excluded by expression": {
        "target_modules": Q_AND_V,
        "exclude_modules": r".*layers\.1\..*q_.*",
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_targets_ranks_and_scales_are_those_of_peft(
    options: dict[str, Any], peft_model: Callable[[LoraConfig], PeftModel]
) -> None:
    config = LoraConfig(**{"r": 4, "lora_alpha": 6} | options)
    # As it would be in the file, before PEFT resolves it against a model.
    raw = json.loads(json.dumps(config.to_dict(), default=sorted)) | {"peft_type": "LORA"}
    ours = PeftConfig(raw, "options")
    modules = dict(peft_model(config).get_base_model().named_modules())
    made = {
        site: module
        for site in ALL_SITES
        if isinstance(module := modules[site.module_name], LoraLayer)
    }
    assert {site for site in ALL_SITES if ours.targets(site)} == set(made)
    assert made
    for site, layer in made.items():
        assert ours.rank(site) == layer.r["default"]
        assert ours.scale(site) == layer.scaling["default"]


def test_what_the_file_leaves_out_has_the_defaults_of_peft() -> None:
    config = PeftConfig({"peft_type": "LORA", "target_modules": ["q_proj"]}, "short")
    defaults = LoraConfig()
    site = Site(0, Role.Q)
    assert (config.rank(site), config.scale(site)) == (defaults.r, defaults.lora_alpha / defaults.r)
    assert config.base_model == ""
    assert not PeftConfig({"peft_type": "LORA"}, "empty").targets(site)
    raw = LoraConfig(target_modules=Q_AND_V).to_dict() | {"peft_type": "LORA"}
    assert PeftConfig(raw, "defaults").targets(Site(0, Role.V))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_type": "IA3"}, r"mine has peft_type 'IA3'.*only LORA"),
        ({"bias": "lora_only"}, r"mine has bias='lora_only'"),
        ({"use_dora": True}, r"mine has use_dora=True: DoRA rescales .*magnitudes"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]: it replaces"),
        ({"layer_replication": [[0, 2]]}, r"layer_replication=\[\[0, 2\]\].*copies of layers"),
        ({"use_qalora": True}, r"use_qalora=True.*not known to be exact"),
        ({"use_of_the_future": 0.5}, r"use_of_the_future=0\.5.*without this option"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights='pissa', which changed the base"),
        ({"init_lora_weights": "corda"}, r"init_lora_weights='corda'.*path_initial_model"),
    ],
)
def test_what_is_not_exact_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        PeftConfig({"peft_type": "LORA", "r": 4, **options}, "mine")


def test_an_unknown_option_that_is_not_set_is_let_through() -> None:
    PeftConfig({"peft_type": "LORA", "use_of_the_future": False, "other": None}, "mine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"mine has rank 0\.0 at model\.layers\.0\.self_attn\.q_proj.*positive"),
        ({"r": "four"}, r"mine: r is 'four', it takes a number"),
        ({"lora_alpha": True}, r"lora_alpha is True, it takes a number"),
        ({"rank_pattern": {"q_proj": "four"}}, r"rank_pattern\['q_proj'\] is 'four'"),
        ({"alpha_pattern": ["q_proj"]}, r"alpha_pattern is \['q_proj'\], it takes a mapping"),
    ],
)
def test_malformed_ranks_and_alphas_are_named(options: dict[str, Any], message: str) -> None:
    config = PeftConfig({"peft_type": "LORA", **options}, "mine")
    with pytest.raises(AdapterError, match=message):
        config.scale(Site(0, Role.Q))


MakeFolder = Callable[..., Path]
Logits = Callable[[Path | None], Tensor]
Edit = Callable[..., Path]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q_KEY = "base_model.model.model.layers.0.self_attn.q_proj"
O_KEY, A = Q_KEY.replace("q_proj", "o_proj"), torch.ones(4, 32)
VISION_KEY = "base_model.model.vision.model.layers.0.mlp.up_proj.lora_A.weight"
EXACT: dict[str, dict[str, object]] = {
    "patterns with rslora": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 3},
        "alpha_pattern": {"v_proj": 11, "layers.0.self_attn.q_proj": 0.7},
        "use_rslora": True,
    },
    "negative alpha, rank 1, layers": {"r": 1, "lora_alpha": -5, "layers_to_transform": [1]},
    "regex, gaussian with dropout": {
        "target_modules": r".*\.1\.(self_attn\.[ko]|mlp\.down)_proj",
        "init_lora_weights": "gaussian",
        "lora_dropout": 0.3,
    },
    "bfloat16, mica": {"dtype": torch.bfloat16, "init_lora_weights": "mica"},
}


def ours(base: BaseModel, adapter: LoraAdapter) -> Tensor:
    with attached(base.network, adapter), torch.inference_mode():
        return base.network(input_ids=torch.arange(24).reshape(2, 12) % 20 + 2).logits


@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
def test_read_and_written_again_peft_computes_the_same_bits(
    options: dict[str, object],
    peft_folder: MakeFolder,
    peft_logits: Logits,
    pico_source: BaseModel,
    tmp_path: Path,
) -> None:
    original = peft_folder(**options)
    adapter = read_adapter(original)
    write_adapter(adapter, tmp_path / "again")
    expected = peft_logits(original)
    assert torch.equal(peft_logits(tmp_path / "again"), expected)
    assert (expected - peft_logits(None)).abs().max() > 1e-2

    before, after = (load_file(f / WEIGHTS) for f in (original, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(before[key].dtype == after[key].dtype for key in before)
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text()) == json.loads(
        (original / "adapter_config.json").read_text()
    ) | {"base_model_name_or_path": adapter.base_model}

    # What was read is what PEFT computes, and a config of our own says the same as PEFT's.
    torch.testing.assert_close(ours(pico_source, adapter), expected, rtol=1e-5, atol=1e-5)
    write_adapter(replace(adapter, config=None), tmp_path / "computed")
    torch.testing.assert_close(peft_logits(tmp_path / "computed"), expected, rtol=1e-5, atol=1e-5)


def computed(base: BaseModel, sites: list[Site]) -> LoraAdapter:
    """Another rank and another scale, also negative and zero, at every site."""
    generator = torch.Generator().manual_seed(8)
    scales = [0.3, 1.0, -2.0, 0.7, 1 / 3, 0.0, 1.1]
    updates = {}
    for place, site in enumerate(sites):
        out, in_ = base.sites.shapes[site]
        rank = 1 + place % 5
        a = torch.randn(rank, in_, generator=generator) * 0.2
        b = torch.randn(out, rank, generator=generator) * 0.2
        updates[site] = LowRank(a, b, scales[place % len(scales)])
    return LoraAdapter(updates, base.name)


@pytest.mark.parametrize("missing", [0, 1], ids=["every site", "one site missing"])
def test_computed_adapter_is_the_same_in_peft(
    missing: int, pico_source: BaseModel, peft_logits: Logits, tmp_path: Path
) -> None:
    sites = list(pico_source.sites.of_roles(tuple(Role)))
    adapter = computed(pico_source, sites[missing:])
    write_adapter(adapter, tmp_path / "computed")
    expected = ours(pico_source, adapter)
    torch.testing.assert_close(peft_logits(tmp_path / "computed"), expected, rtol=1e-5, atol=1e-5)
    assert (expected - peft_logits(None)).abs().max() > 1e-2

    again = read_adapter(tmp_path / "computed")
    assert list(again) == list(adapter)
    for site, update in adapter.items():
        assert torch.equal(again[site].A, update.A)
        assert torch.equal(again[site].B, update.B)
        assert again[site].scale == pytest.approx(update.scale, rel=1e-15)
    assert again.base_model == pico_source.name
    if not missing:
        assert again.config is not None
        assert again.config["target_modules"] == [role.module for role in Role]


def test_factors_that_sites_share_and_views_can_be_written(tmp_path: Path) -> None:
    shared = LowRank(torch.ones(2, 3), torch.ones(6, 4).mT[:, :2])
    adapter = LoraAdapter({Site(0, Role.Q): shared, Site(1, Role.Q): shared}, "some/base")
    write_adapter(adapter, tmp_path / "shared")
    assert read_adapter(tmp_path / "shared").content_hash() == adapter.content_hash()


@pytest.mark.parametrize("change", ["rank", "scale", "site"])
def test_config_that_describes_the_adapter_no_more_is_not_kept(
    change: str, peft_folder: MakeFolder
) -> None:
    adapter = read_adapter(peft_folder())
    assert peft_config(adapter)["lora_alpha"] == 6
    assert adapter.config is not None
    site = Site(0, Role.Q)
    sites = dict(adapter.sites)
    if change == "rank":
        sites[site] = sites[site].truncated(2).matrix
    elif change == "scale":
        sites[site] = sites[site].scaled(2.0)
    else:
        sites[Site(0, Role.K)] = sites[site]
    config = peft_config(replace(adapter, sites=sites))
    assert config != dict(adapter.config)
    read = PeftConfig(config, "computed")
    for place, update in sites.items():
        assert read.targets(place)
        assert (read.rank(place), read.scale(place)) == (update.rank, update.scale)


class TestRefused:
    @pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
    def test_modules_that_peft_adapts_and_no_decoder_layer_has(
        self, module: str, peft_folder: MakeFolder
    ) -> None:
        with pytest.raises(AdapterError, match=rf"{module}\..*, which is no lora_A or lora_B of"):
            read_adapter(peft_folder(target_modules=["q_proj", module]))

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({f"{Q_KEY}.lora_A.weight": None}, r"original has only lora_B of .*0\.self_attn\.q_pr"),
            (
                {f"{O_KEY}.lora_A.weight": A, f"{O_KEY}.lora_B.weight": A.mT.contiguous()},
                r"weights for model\.layers\.0\.self_attn\.o_proj, .*does not target that module",
            ),
            (
                {f"{Q_KEY}.lora_B.weight": torch.ones(32, 3)},
                r"lora_A \(4, 32\) and lora_B \(32, 3\) at .*0\.self_attn\.q_proj.*gives rank 4",
            ),
            (
                {f"{Q_KEY}.lora_A.weight": torch.full((4, 32), float("nan"))},
                r"original: .* 128 NaN or infinite entries in lora_A of .*0\.self_attn\.q_proj",
            ),
            (
                {f"{Q_KEY}.lora_B.bias": torch.ones(32)},
                r"q_proj\.lora_B\.bias', which is no lora_A",
            ),
            ({"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}, r"up_proj\.weight'"),
            ({VISION_KEY: torch.ones(4, 2)}, r"vision\.model\.layers"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_tensors_that_would_be_lost_or_wrong(
        self,
        tensors: dict[str, Tensor | None],
        message: str,
        peft_folder: MakeFolder,
        edited: Edit,
    ) -> None:
        with pytest.raises(AdapterError, match=message):
            read_adapter(edited(peft_folder(), tensors=tensors))

    @pytest.mark.parametrize("dtype", ["complex64", "bool", "int8", "float8_e4m3fn"])
    def test_factors_that_are_no_ordinary_floats(
        self, peft_folder: MakeFolder, edited: Edit, dtype: str
    ) -> None:
        folder = peft_folder()
        tensors = {
            name: t.to(getattr(torch, dtype)) for name, t in load_file(folder / WEIGHTS).items()
        }
        with pytest.raises(
            AdapterError, match=rf"factors in {dtype} at .*it takes float64, float32"
        ):
            read_adapter(edited(folder, tensors=tensors))

    def test_empty_weights(self, peft_folder: MakeFolder, edited: Edit) -> None:
        folder = peft_folder()
        names = load_file(folder / WEIGHTS)
        with pytest.raises(AdapterError, match=r"original: .*has no site"):
            read_adapter(edited(folder, tensors=dict.fromkeys(names)))

    def test_pickle_with_the_command_that_converts_it(
        self, peft_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = peft_folder()
        expected = read_adapter(folder)
        torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
        (folder / WEIGHTS).unlink()
        with pytest.raises(AdapterError, match=r"as a pickle \(adapter_model\.bin\)") as caught:
            read_adapter(folder)
        code = str(caught.value).partition('python -c "')[2].rstrip('"')
        monkeypatch.chdir(folder)
        exec(code, {})
        assert read_adapter(folder).content_hash() == expected.content_hash()

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda f: (f / WEIGHTS).write_bytes(b""), r"safetensors \(0 bytes\) is truncated"),
            (
                lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1]),
                r"safetensors \(\d\d+ bytes\) is truncated",
            ),
            (lambda f: (f / WEIGHTS).unlink(), rf"original has no {WEIGHTS}"),
            (lambda f: (f / CONFIG).unlink(), rf"original is no.*no {CONFIG}"),
            (lambda f: (f / CONFIG).write_text('{"r": 4'), r"is not valid JSON .*save the adapter"),
            (lambda f: (f / CONFIG).write_text("[1, 2]"), r"holds a list, it takes a JSON object"),
        ],
        ids=["empty", "cut", "no weights", "no config", "no JSON", "a list"],
    )
    def test_missing_and_damaged_files(
        self, spoil: Callable[[Path], object], message: str, peft_folder: MakeFolder
    ) -> None:
        folder = peft_folder()
        spoil(folder)
        with pytest.raises(AdapterError, match=message):
            read_adapter(folder)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    listed = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return listed | {f"{path.relative_to(folder)}/": b"" for path in folder.iterdir()}


class TestWriting:
    adapter = LoraAdapter({Site(0, Role.Q): LowRank(torch.ones(2, 3), torch.ones(4, 2))}, "a/base")

    def test_extra_files_and_missing_parents(self, tmp_path: Path) -> None:
        folder = tmp_path / "not" / "there" / "yet"
        write_adapter(self.adapter, folder, extra={"README.md": "# Für dich\n"})
        names = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
        assert {path.name for path in folder.iterdir()} == names
        assert (folder / "README.md").read_text(encoding="utf-8") == "# Für dich\n"
        assert [path.name for path in folder.parent.iterdir()] == ["yet"]
        assert peft.PeftConfig.from_pretrained(str(folder)).r == 2

    def test_a_folder_that_exists_is_replaced_as_a_whole_and_on_request_alone(
        self, tmp_path: Path
    ) -> None:
        write_adapter(self.adapter, tmp_path / "mine", extra={"old.md": "old"})
        before = contents(tmp_path)
        other = self.adapter.map(lambda update: update.scaled(3.0))
        with pytest.raises(OutputError, match=r"mine exists already.*overwrite=true"):
            write_adapter(other, tmp_path / "mine")
        assert contents(tmp_path) == before
        write_adapter(other, tmp_path / "mine", overwrite=True)
        assert read_adapter(tmp_path / "mine").content_hash() == other.content_hash()
        assert not (tmp_path / "mine" / "old.md").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_full_disk_leaves_everything_as_it_was(
        self, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if overwrite:
            write_adapter(self.adapter, tmp_path / "mine")
        before = contents(tmp_path)

        def write_half(path: Path, content: bytes) -> NoReturn:
            with path.open("wb") as file:
                file.write(content[: len(content) // 2])
            raise OSError("no space left on device")

        monkeypatch.setattr(Path, "write_bytes", write_half)
        with pytest.raises(OSError, match="no space left"):
            write_adapter(self.adapter, tmp_path / "mine", overwrite=overwrite)
        assert contents(tmp_path) == before
