"""``transfer.py ckpt=`` with mappers that learned from text."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraport.adapters import Role, read_adapter, write_adapter
from loraport.evaluation.records import TransferReport
from loraport.mappers.cartridge import load_cartridge
from loraport.models import BaseModel

from .conftest import Command, Outcome, Workspace, new_workspace, run_command

CONF = Path(__file__).parents[2] / "conf" / "mapper"
MAPPERS = ("transport", "adjoint_transport", "procrustes", "cast")


@pytest.fixture(scope="module")
def fitted(
    tmp_path_factory: pytest.TempPathFactory,
    models_and_tasks: Path,
    pico_source: BaseModel,
    pico_target: BaseModel,
) -> Callable[[str], Path]:
    """Fit a mapper on a few texts, each once, and return its checkpoint."""
    folder, sides = (
        tmp_path_factory.mktemp("fitted"),
        {"source": pico_source, "target": pico_target},
    )
    workspace = new_workspace(folder, models_and_tasks, sides)

    def checkpoint(mapper: str) -> Path:
        path = folder / "work" / mapper / "mapper.ckpt"
        if not path.exists():
            words = (f"paths.zoo={workspace.zoo}", f"hydra.run.dir={mapper}")
            assert run_command(folder, "train", *workspace.text_training(mapper), *words) == 0
        return path

    return checkpoint


class Ports:
    """Ports the adapter ``books`` with a mapper that was fitted on a few texts."""

    def __init__(
        self, workspace: Workspace, command: Command, fitted: Callable[[str], Path]
    ) -> None:
        self.workspace, self.command, self.fitted = workspace, command, fitted
        self.output = workspace.root / "out" / "ported"

    def call(self, *options: str, adapter: Path | None = None) -> Outcome:
        return self.command(
            "transfer",
            *self.workspace.options(),
            f"adapter={adapter or self.workspace.zoo / 'source/books'}",
            f"output={self.output}",
            *options,
        )

    def refused(self, *options: str, adapter: Path | None = None) -> str:
        end = self.call(*options, adapter=adapter)
        assert end.code == 2, end.err
        assert "Traceback" not in end.err
        assert not self.output.exists()
        return " ".join(end.err.split())

    @property
    def report(self) -> TransferReport:
        return TransferReport.model_validate_json((self.output / "report.json").read_bytes())


@pytest.fixture
def ports(workspace: Workspace, command: Command, fitted: Callable[[str], Path]) -> Ports:
    return Ports(workspace, command, fitted)


def test_these_are_all_mappers_of_text():
    found = (path for path in CONF.glob("*.yaml") if "/data: text_corpus" in path.read_text())
    assert {path.stem for path in found} == set(MAPPERS)


@pytest.mark.parametrize("mapper", MAPPERS)
def test_a_checkpoint_ports_what_training_predicted(ports: Ports, mapper: str) -> None:
    checkpoint = ports.fitted(mapper)
    end = ports.call(f"ckpt={checkpoint}")
    assert end.code == 0, end.err
    ported = read_adapter(ports.output)
    predicted = read_adapter(checkpoint.parent / "adapters/books")
    assert ported.content_hash() == predicted.content_hash()
    assert ported.base_model == "pico/target"
    assert "verified: PEFT reads" in end.out
    assert set(ports.report.output.roles) == {"q", "v"}

    report = ports.report
    assert (report.mapper, report.data_access) == (mapper, "generic text")
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert report.provenance.hashes["checkpoint"] == digest
    card = (ports.output / "README.md").read_text()
    settings = json.loads(card.split("```json\n")[1].split("```")[0])
    assert settings["ckpt"] == checkpoint.name  # and no folder of the machine
    assert settings["mapper"] == report.trained_with
    assert "roles" in settings["mapper"]
    assert "R² " in end.out
    assert "R² " in card
    assert "is on held-out text" in card
    assert "weights alone have hardly been better" not in card


def test_the_checkpoint_of_another_pair_is_refused(ports: Ports) -> None:
    checkpoint = ports.fitted("transport")
    message = ports.refused(f"ckpt={checkpoint}", "pair.target.name=pico/other")
    assert "was fitted for pico/source and pico/target" in message
    assert "the target of this pair is pico/other" in message
    assert "python train.py" in message
    models = ports.workspace.root / "models"
    message = ports.refused(f"ckpt={checkpoint}", f"pair.target.path={models / 'source'}")
    assert "the target of this pair is pico/target, with modules of other shapes" in message


def test_a_role_that_was_not_fitted_names_the_way_out(ports: Ports, pico_source: BaseModel) -> None:
    checkpoint = ports.fitted("transport")
    books = read_adapter(ports.workspace.zoo / "source/books")
    sites = {
        site: next(u for u in books.values() if u.shape == shape)
        for site, shape in pico_source.sites.shapes.items()
        if site.role in (Role.Q, Role.O)
    }
    other = ports.workspace.root / "other"
    write_adapter(type(books)(sites, books.base_model), other)
    message = ports.refused(f"ckpt={checkpoint}", adapter=other)
    assert "train the mapper with mapper.roles=[q,o]" in message


class TestCartridge:
    def test_it_is_written_beside_the_adapter(self, ports: Ports, pico_target: BaseModel) -> None:
        checkpoint, place = ports.fitted("cast"), ports.workspace.root / "out/cartridge"
        end = ports.call(f"ckpt={checkpoint}", f"cartridge={place}")
        assert end.code == 0, end.err
        assert str(place) in end.out
        cartridge = load_cartridge(place)
        assert cartridge.base_model == "pico/target"
        assert set(cartridge.acts_at()) == set(read_adapter(ports.output))
        ids = torch.tensor([[1, 5, 60, 7]])
        with torch.inference_mode():
            plain = pico_target.network(ids).logits
            handles = cartridge.hooks(pico_target.network)
            changed = pico_target.network(ids).logits
            for handle in handles:
                handle.remove()
        assert not torch.allclose(plain, changed, atol=1e-4)

        ports.output = ports.output.with_name("again")
        message = ports.refused(f"ckpt={checkpoint}", f"cartridge={place}")
        assert str(place) in message
        assert "overwrite=true" in message

    def test_other_mappers_have_none(self, ports: Ports) -> None:
        message = ports.refused(f"ckpt={ports.fitted('transport')}", "cartridge=made")
        assert "cartridge=made takes ckpt= of mapper=cast" in message
        assert "TransportMapper" in message

    def test_it_holds_one_adapter(self, ports: Ports) -> None:
        checkpoint, zoo = ports.fitted("cast"), ports.workspace.zoo / "source"
        both = f"adapter=[{zoo / 'books'},{zoo / 'games'}]"
        message = ports.refused(f"ckpt={checkpoint}", "cartridge=made", both)
        assert "holds one adapter" in message
