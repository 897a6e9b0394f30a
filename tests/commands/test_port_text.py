"""``transfer.py ckpt=`` with mappers that learned from text."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from loraport.adapters import Role, read_adapter, write_adapter
from loraport.evaluation.records import TransferReport
from loraport.mappers.cartridge import load_cartridge
from loraport.models import BaseModel

from .conftest import Command, Outcome, Workspace

MAPPERS = ("transport", "adjoint_transport", "procrustes", "cast")


class Ports:
    """Fits a mapper on a few texts, and ports the adapter ``books`` with it."""

    def __init__(self, workspace: Workspace, command: Command) -> None:
        self.workspace, self.command = workspace, command
        self.output = workspace.root / "out" / "ported"

    def fitted(self, mapper: str, *options: str) -> Path:
        words = (*self.workspace.text_training(mapper), "hydra.run.dir=fitted", *options)
        end = self.command("train", *words)
        assert end.code == 0, end.err
        return self.workspace.root / "work/fitted/mapper.ckpt"

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
def ports(workspace: Workspace, command: Command) -> Ports:
    return Ports(workspace, command)


@pytest.mark.parametrize("mapper", MAPPERS)
def test_a_checkpoint_ports_what_training_predicted(ports: Ports, mapper: str) -> None:
    checkpoint = ports.fitted(mapper, f"paths.zoo={ports.workspace.zoo}")
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
    assert settings["ckpt"] == str(checkpoint)
    assert settings["mapper"] == report.trained_with
    assert "roles" in settings["mapper"]
    assert "R² " in end.out
    assert "R² " in card
    assert "is on held-out text" in card
    assert "weights alone have hardly been better" not in card


def test_no_corpus_is_needed_to_port(ports: Ports) -> None:
    checkpoint = ports.fitted("transport")
    for path in (ports.workspace.root / "texts").iterdir():
        path.unlink()
    assert ports.call(f"ckpt={checkpoint}").code == 0


def test_the_checkpoint_of_another_pair_is_refused(ports: Ports) -> None:
    checkpoint = ports.fitted("transport")
    message = ports.refused(f"ckpt={checkpoint}", "pair.target.name=pico/other")
    assert "was fitted for pico/source and pico/target" in message
    assert "the target of this pair is pico/other" in message
    assert "python train.py" in message
    models = ports.workspace.root / "models"
    message = ports.refused(f"ckpt={checkpoint}", f"pair.target.path={models / 'source'}")
    assert "the target of this pair is pico/target, with modules of other shapes" in message


def test_without_a_checkpoint_the_command_to_train_is_named(ports: Ports) -> None:
    message = ports.refused("mapper=transport")
    assert "python train.py mapper=transport pair=local" in message
    assert "ckpt=" in message


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
