"""What is read of others: mutated at random, it is read, or refused with a message; in time."""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.adapters import LoraAdapter, read_adapter, write_adapter
from loraport.commands.porting import given_examples, given_inputs
from loraport.data import Task, TaskFolder, Zoo
from loraport.data.corpora import CorpusFolder
from loraport.exceptions import AdapterError, LoraportError, ModelError
from loraport.models import BaseModel, LocalModel
from loraport.models.verify import verify

# Values that a field of JSON may get in place of its own.
ODD: list[Any] = [
    *(None, True, 0, -1, 1, 3, 0.5, -2.5, 10**9, -(10**9), 2**63, 2**64 + 1, 10**400, 1e308),
    *(float("nan"), float("inf"), "", "x", "1", "../x", "/etc/passwd", "\x00", "\ud800", "é" * 300),
    *([], [1], ["x"], [[]], [None], {}, {"x": 1}, {"": {}}, "([a-z._0-9]+)+X", "(", "[[a]", "(?R)"),
    *(
        {"([a-z._0-9]+)+X": 4},
        {"(": 4},
        ["(.*)*(.*)*(.*)*X"],
        "auto",
        "all-linear",
        "llama",
        "gpt2",
    ),
]


SLOW = r"(?:[a-z._0-9]+)+X"  # 2^n ways to match a name of n letters, none of which ends in X
NESTED = "[" * 100_000


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rank_pattern": {SLOW: 4}}, "rank_pattern=.*which takes more than a second"),
        (
            {"alpha_pattern": {"(.|.)" * 28 + "X": 4}},
            "alpha_pattern=.*takes more than a second",
        ),
        ({"target_modules": rf".*_proj|{SLOW}|{SLOW}"}, "$"),
        ({"target_modules": rf"{SLOW}|.*_proj"}, "target_modules=.*takes more than a second"),
        ({"exclude_modules": SLOW}, "exclude_modules=.*which takes more than a second"),
        ({"layers_pattern": ["layers", SLOW]}, "layers_pattern=.*which takes more than a second"),
        ({"rank_pattern": {"(": 4}}, r"rank_pattern='\(', which is no regular expression"),
        ({"target_modules": "[q_proj"}, "which is no regular expression .*unterminated"),
        ({"rank_pattern": {f"q{n}": 4 for n in range(80_000)}}, r"800\d\d names and patterns"),
        ({"r": 10**400}, "r has 401 digits"),
        ({"r": 2**70}, "has rank|gives rank"),
        ({"lora_alpha": 1e999}, "lora_alpha inf"),
        ({"layers_to_transform": "1"}, "layers_to_transform"),
        ({"target_modules": [1]}, r"target_modules.*valid string"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path.*valid string"),
        ({"use_rslora": "false"}, "use_rslora.*valid boolean"),
    ],
)
def test_an_adapter_that_would_hang_or_overflow_is_refused(
    changed: dict[str, Any],
    named: str,
    pico_source: BaseModel,
    random_adapter: Callable[..., LoraAdapter],
    tmp_path: Path,
) -> None:
    write_adapter(random_adapter(pico_source), tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    if named == "$":  # what matches before it hangs is right, here as in PEFT
        read_adapter(tmp_path / "adapter")
        return
    with pytest.raises(AdapterError, match=named):
        read_adapter(tmp_path / "adapter")


def test_verifying_asks_about_every_module_of_the_network(
    pico_source: BaseModel, random_adapter: Callable[..., LoraAdapter], tmp_path: Path
) -> None:
    """An expression may match the sites at once, and hang at another module."""
    made = random_adapter(pico_source)
    write_adapter(made, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    pattern = r".*_proj|(?=.*layernorm)(?:[a-z._0-9]+)+X"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": pattern}))
    saved(pico_source, tmp_path / "model")
    assert read_adapter(tmp_path / "adapter").keys() == made.keys()
    weights = LocalModel(str(tmp_path / "model")).weights(tmp_path)
    with pytest.raises(AdapterError, match="takes more than a second"):
        verify(tmp_path / "adapter", weights, made)


def saved(base: BaseModel, folder: Path) -> None:
    base.network.save_pretrained(folder, max_shard_size="20KB")
    base.tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "changed", "named"),
    [
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers is not a whole .* 1024"),
        ("config.json", {"num_hidden_layers": 1024}, r"no tensor model\.layers\.2\."),
        ("config.json", {"num_hidden_layers": -1}, "num_hidden_layers is not a whole number"),
        ("config.json", {"hidden_size": 10**400}, "hidden_size is not a whole number"),
        ("config.json", {"hidden_size": 2**18}, "has the shape"),
        ("config.json", {"vocab_size": 2**24}, r"embed_tokens.* has the shape"),
        ("config.json", {"num_attention_heads": 0}, "num_attention_heads is not a whole number"),
        ("config.json", {"num_key_value_heads": 3}, "4 attention heads for 3 heads of keys"),
        ("config.json", {"vocab_size": True}, "vocab_size is not a whole number"),
        ("config.json", {"model_type": ["llama"]}, "architecture is"),
        ("config.json", {"hidden_act": "none-such"}, "none-such"),
        ("config.json", {"rope_parameters": {"rope_type": "x"}}, "model in .* cannot be read"),
        ("config.json", NESTED, r"config\.json cannot be read \(RecursionError"),
        ("model.safetensors.index.json", NESTED, r"index\.json cannot be read \(RecursionError"),
        ("model.safetensors.index.json", {"weight_map": {"x": [1]}}, "index.json cannot be read"),
        ("model.safetensors.index.json", {"weight_map": {"x": 3}}, "one that is no text"),
        ("model.safetensors.index.json", {"weight_map": {}}, "names no shards"),
        ("tokenizer.json", "{}", "tokenizer in .* cannot be read"),
        ("tokenizer.json", NESTED, "tokenizer in .* cannot be read"),
        ("tokenizer_config.json", "[]", "tokenizer in .* cannot be read"),
        ("tokenizer_config.json", {"tokenizer_class": 7}, "tokenizer in .* cannot be read"),
    ],
)
def test_a_model_that_would_hang_or_overflow_is_refused(
    file: str, changed: str | dict[str, Any], named: str, pico_source: BaseModel, tmp_path: Path
) -> None:
    saved(pico_source, tmp_path)
    path = tmp_path / file
    new = (
        changed if isinstance(changed, str) else json.dumps(json.loads(path.read_text()) | changed)
    )
    path.write_text(new)
    with pytest.raises(ModelError, match=named):
        LocalModel(str(tmp_path)).load(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(
    pico_source: BaseModel, pico_target: BaseModel, tmp_path: Path
) -> None:
    saved(pico_source, tmp_path)
    pico_target.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="makes tokens that the embedding has not"):
        LocalModel(str(tmp_path)).load(tmp_path)


def test_weights_that_compute_nothing_are_refused(pico_source: BaseModel, tmp_path: Path) -> None:
    saved(pico_source, tmp_path)
    file = sorted(tmp_path.glob("model*.safetensors"))[0]
    tensors = load_file(file)
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, file)
    with pytest.raises(ModelError, match="its logits are not finite"):
        LocalModel(str(tmp_path)).load(tmp_path)


def mutate(draw: random.Random, folder: Path) -> str:
    """Spoil one file of a folder; return what was done, in words."""
    file = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = file.read_bytes()
    ways: list[Callable[[], str]] = [
        lambda: _bytes(draw, file, content[: draw.randrange(len(content) + 1)], "cut"),
        lambda: _bytes(draw, file, content + draw.randbytes(9), "longer"),
        lambda: _flip(draw, file, bytearray(content)),
        lambda: _bytes(draw, file, b"", "empty"),
        lambda: _gone(draw, file),
    ]
    if file.suffix in (".json", ".jsonl") and _parses(file):
        ways = [*ways, *[lambda: _field(draw, file)] * 15, lambda: _nested(draw, file)]
    if file.suffix == ".safetensors" and _parses(file):
        ways = [*ways, *[lambda: _tensor(draw, file)] * 4]
    return f"{file.name} {draw.choice(ways)()}"


def _parses(file: Path) -> bool:
    """Whether a file can be read, which a second mutation of it needs."""
    try:
        if file.suffix == ".safetensors":
            return bool(load_file(file))
        text = file.read_text()
        lines = text.splitlines() if file.suffix == ".jsonl" else [text]
        return bool(lines) and all(json.loads(line) is not None for line in lines)
    except Exception:
        return False


def _bytes(draw: random.Random, file: Path, content: bytes, called: str) -> str:
    file.write_bytes(content)
    return called


def _flip(draw: random.Random, file: Path, content: bytearray) -> str:
    for _ in range(draw.choice((1, 1, 8)) if content else 0):
        # Near the beginning, where headers are, as often as anywhere.
        place = draw.randrange(min(len(content), draw.choice((64, len(content)))))
        content[place] = draw.randrange(256)
    file.write_bytes(content)
    return "flipped"


def _gone(draw: random.Random, file: Path) -> str:
    file.unlink()
    if draw.random() < 0.5:
        file.mkdir()
        return "a folder"
    return "gone"


def _nested(draw: random.Random, file: Path) -> str:
    file.write_text(draw.choice(("[", '{"a":')) * 100_000)
    return "nested"


def _field(draw: random.Random, file: Path) -> str:
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    row = draw.randrange(len(lines))
    content = json.loads(lines[row])
    node, key = content, None
    while isinstance(node, dict | list) and node:
        key = draw.choice(list(node) if isinstance(node, dict) else [*range(len(node))])
        if not isinstance(node[key], dict | list) or not node[key] or draw.random() < 0.5:
            break
        node = node[key]
    if draw.random() < 0.1:
        del node[key]
    elif isinstance(node, dict) and draw.random() < 0.1:
        node[str(draw.choice(ODD))[:40]] = draw.choice(ODD)
    else:
        node[key] = draw.choice(ODD)
    lines[row] = json.dumps(content)
    file.write_text("\n".join(lines))
    return f"field {key}"[:40]


def _tensor(draw: random.Random, file: Path) -> str:
    tensors = load_file(file)
    name = draw.choice(sorted(tensors))
    found = tensors.pop(name)
    odd = draw.choice(
        [
            *(
                found.half(),
                found.bool(),
                found.to(torch.complex64),
                found * float("nan"),
                found * 0,
            ),
            *(found[:1].clone(), found[:0].clone(), found.flatten().clone(), found[None].clone()),
        ]
    )
    called = draw.choice([name, name, name, name.replace("0", "9" * 20), "x", name + ".x", ""])
    save_file(tensors | {called: odd}, file)
    return "tensor"


def tried(
    make: Callable[[Path], None], use: Callable[[Path], object], seed: int, count: int, place: Path
) -> tuple[Counter[str], list[str], float]:
    """Mutate a folder so many times; return how it ended, all tracebacks, and the longest time."""
    make(place / "whole")
    ends: Counter[str] = Counter()
    wrong, longest = [], 0.0
    for number in range(count):
        draw, folder = random.Random(f"{seed} {number}"), place / f"mutant {number}"
        shutil.copytree(place / "whole", folder)
        done = [mutate(draw, folder) for _ in range(draw.choice((1, 1, 1, 2)))]
        start = sum(os.times()[:4])
        try:
            use(folder)
            ends["read"] += 1
        except LoraportError as error:
            ends["refused"] += 1
            if len(str(error)) > 3000:
                wrong.append(f"{number} {done}: a message of {len(str(error))} letters")
        except Exception as error:
            ends["traceback"] += 1
            wrong.append(f"{number} {done}: {type(error).__name__}: {error}"[:300])
        longest = max(longest, sum(os.times()[:4]) - start)
        shutil.rmtree(folder)
    return ends, wrong, longest


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "count"),
    [("adapter", 700), ("streamed", 300), ("loaded", 250), ("zoo", 250), ("rows", 500)],
)
def test_mutated_files_are_read_or_refused(
    kind: str,
    count: int,
    pico_source: BaseModel,
    pico_task: Task,
    random_adapter: Callable[..., LoraAdapter],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def adapter(folder: Path, seed: int = 0) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_adapter(random_adapter(pico_source, seed), folder)

    def zoo(folder: Path) -> None:
        for side in ("source", "target"):
            for seed in (0, 1):
                adapter(folder / side / f"task{seed}", seed)

    def rows(folder: Path) -> None:
        task = folder / "tasks" / "feeling"
        task.mkdir(parents=True)
        about = {"instruction": pico_task.instruction, "labels": pico_task.labels}
        (task / "task.json").write_text(json.dumps(about))
        for split in ("train", "test"):
            lines = [json.dumps(row._asdict()) for row in getattr(pico_task, split)]
            (task / f"{split}.jsonl").write_text("\n".join(lines))
        (folder / "corpus").mkdir()
        for name in ("train.txt", "more.jsonl"):
            texts = [json.dumps({"text": row.text}) for row in pico_task.train]
            (folder / "corpus" / name).write_text("\n".join(texts))

    def use_streamed(folder: Path) -> None:
        weights = LocalModel(str(folder)).weights(tmp_path)
        for site in weights.sites.shapes:
            weights.weight(site)
            weights.input_gain(site)
        weights.embedding()
        assert weights.tokenizer
        made = random_adapter(pico_source)
        write_adapter(made, folder / "adapter")
        verify(folder / "adapter", weights, made)

    def use_rows(folder: Path) -> None:
        def corpus() -> None:
            for split in ("train", "validation"):
                list(CorpusFolder(folder / "corpus").texts(split))

        train, refused = folder / "tasks" / "feeling" / "train.jsonl", []
        for read in (
            *(corpus, lambda: TaskFolder(folder / "tasks").load()),
            *(lambda: given_examples(train, ()), lambda: given_inputs(train)),
        ):
            try:
                read()
            except LoraportError as error:
                refused.append(error)
        if refused:
            raise refused[0]

    kinds: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
        "adapter": (adapter, read_adapter),
        "streamed": (partial(saved, pico_source), use_streamed),
        "loaded": (
            partial(saved, pico_source),
            lambda folder: LocalModel(str(folder)).load(tmp_path),
        ),
        "zoo": (zoo, lambda folder: Zoo.open(folder).read()),
        "rows": (rows, use_rows),
    }
    made, use = kinds[kind]
    ends, wrong, longest = tried(made, use, 1, count, tmp_path)
    with capsys.disabled():
        print(f"\n{kind}: {dict(ends)}, at most {longest:.1f} s")
    assert not wrong, "\n".join(wrong)
    assert ends["read"] > 0
    assert ends["refused"] > count // 4
