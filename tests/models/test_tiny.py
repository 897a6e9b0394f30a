import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from loraport.data.tiny_language import TinyLanguage
from loraport.exceptions import ModelError
from loraport.models import BaseModel, ModelSource, TinyModel

SOURCE = TinyModel("source", documents=300, steps=3)
TARGET = TinyModel("target", documents=300, steps=3)


def weights(base: BaseModel) -> dict[str, torch.Tensor]:
    return dict(base.network.state_dict())


def files(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that holds both sides."""
    folder = tmp_path_factory.mktemp("cache")
    for model in (SOURCE, TARGET):
        model.build(folder, show_progress=False)
    return folder


@pytest.fixture
def writes(monkeypatch):
    """How often a model was written, by any process of this one's threads."""
    done = []
    write = TinyModel._write

    def counting(model, folder, show_progress):
        done.append(model.side)
        time.sleep(0.1)  # So that the others do arrive while it builds.
        write(model, folder, show_progress)

    monkeypatch.setattr(TinyModel, "_write", counting)
    return done


@pytest.mark.parametrize("model", [SOURCE, TARGET], ids=lambda model: model.side)
class TestBothSides:
    def test_a_build_is_repeated_bit_for_bit(self, model, cache, tmp_path):
        threads = torch.get_num_threads()
        torch.manual_seed(123)
        torch.set_num_threads(2)
        try:
            model.build(tmp_path, show_progress=False)
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(threads)
        assert files(model.folder(tmp_path)) == files(model.folder(cache))

    def test_building_leaves_the_global_generator_alone(self, model, tmp_path):
        before = torch.get_rng_state()
        model.build(tmp_path, show_progress=False)
        assert torch.equal(torch.get_rng_state(), before)

    def test_it_loads_ready_for_adapters(self, model, cache, writes):
        source: ModelSource = model
        base = source.load(cache)
        assert writes == []
        assert base.name == source.name == f"tiny-{model.side}"
        assert not base.network.training
        assert not any(p.requires_grad for p in base.network.parameters())
        assert base.tokenizer.pad_token_id == 0
        assert base.sites.layers == base.network.config.num_hidden_layers
        assert base.fingerprint == model.load(cache).fingerprint

    def test_its_weights_are_read_without_loading_it(self, model, cache, writes):
        streamed = model.weights(cache)
        base = model.load(cache)
        assert writes == []
        assert streamed.name == model.name
        assert streamed.sites == base.sites
        for site in base.sites.shapes:
            expected = base.network.get_parameter(f"{site.module_name}.weight")
            assert torch.equal(streamed.weight(site), expected)

    def test_weights_are_built_where_they_are_missing(self, model, tmp_path, writes):
        assert model.weights(tmp_path).folder == model.folder(tmp_path)
        assert writes == [model.side]

    def test_the_loaded_tokenizer_is_the_one_that_was_made(self, model, cache):
        tokenizer = model.load(cache).tokenizer
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        for text in TinyLanguage().documents(20, seed=5):
            encoded = tokenizer(text, return_offsets_mapping=True)
            spans = "".join(text[start:end] for start, end in encoded["offset_mapping"])
            assert spans == text
            assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == text

    def test_threads_at_once_build_it_once(self, model, tmp_path, writes):
        # Built only: transformers cannot load models in several threads at once.
        with ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(model.build, tmp_path, show_progress=False) for _ in range(3)]
            for job in jobs:
                job.result()
        assert writes == [model.side]
        assert model.folder(tmp_path).is_dir()

    def test_a_killed_build_is_not_trusted(self, model, cache, tmp_path):
        folder = model.folder(tmp_path)
        scratch = folder.parent / f".{model.side}-killed"
        (scratch / "model").mkdir(parents=True)
        (scratch / "model" / "config.json").write_text("{")
        folder.with_name(f"{model.side}.lock").touch()
        model.build(tmp_path, show_progress=False)
        assert files(folder) == files(model.folder(cache))
        assert not scratch.exists()

    @pytest.mark.parametrize("moment", ["pretrain", "os.replace"])
    def test_an_interrupted_build_leaves_nothing(self, model, tmp_path, monkeypatch, moment):
        def interrupt(*_arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(f"loraport.models.tiny.{moment}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                model.build(tmp_path, show_progress=False)
        left = [path.name for path in model.folder(tmp_path).parent.iterdir()]
        assert set(left) <= {f"{model.side}.lock"}
        model.build(tmp_path, show_progress=False)
        assert model.folder(tmp_path).is_dir()

    @pytest.mark.parametrize("change", [{"seed": 1}, {"steps": 4}, {"documents": 301}])
    def test_what_determines_a_model_is_in_its_key(self, model, change):
        assert replace(model, **change).key != model.key
        assert replace(model).key == model.key

    def test_the_versions_of_the_libraries_are_in_its_key(self, model, monkeypatch):
        before = model.key
        monkeypatch.setattr("loraport.models.tiny.version", lambda library: "0")
        assert model.key != before

    def test_progress_goes_to_stderr(self, model, tmp_path, capfd):
        model.build(tmp_path)
        captured = capfd.readouterr()
        assert f"pre-training {model.name}" in captured.err
        assert "3/3 steps" in captured.err
        assert captured.out == ""


def test_the_sides_differ_in_all_that_makes_porting_hard(cache):
    source, target = (model.load(cache) for model in (SOURCE, TARGET))
    left, right = source.network.config, target.network.config
    assert (left.model_type, right.model_type) == ("llama", "gemma3_text")
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"):
        assert getattr(left, name) != getattr(right, name)
    text = TinyLanguage().documents(1, seed=9)[0]
    assert len(source.tokenizer(text)["input_ids"]) != len(target.tokenizer(text)["input_ids"])


def test_training_moved_the_weights(cache, tmp_path):
    before, after = weights(replace(TARGET, steps=0).load(tmp_path)), weights(TARGET.load(cache))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_nothing_is_built_twice(cache, writes):
    for model in (SOURCE, TARGET):
        model.load(cache)
    assert writes == []


def test_an_unknown_side_is_refused():
    with pytest.raises(ModelError, match=r"no side 'both'.*source and target"):
        TinyModel("both")


def test_the_folder_is_inside_the_cache(tmp_path):
    folder = SOURCE.folder(tmp_path)
    assert folder.relative_to(tmp_path).parts == ("tiny", SOURCE.key, "source")
    assert os.listdir(tmp_path) == []
