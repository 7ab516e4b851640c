import pytest
import safetensors.torch
import torch

from csham.errors import UserError
from csham.training.checkpoints import load_weights
from csham.training.config import resolve
from csham.training.network import NetworkInfo, read_network, write_weights


def info(**given):
    config = resolve({"data": "digits", "backbone": "resnet20", **given})
    return NetworkInfo.of(config, ["a", "b", "ü"], 32, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])


@pytest.mark.parametrize("open_gates", [{}, {"open_gates": True}])
def test_weights_and_description_round_trip(tmp_path, open_gates):
    described = info(attention="csham", strategy="transfer", gated=True, **open_gates)
    network = described.build().to(memory_format=torch.channels_last)
    write_weights(tmp_path / "model.safetensors", network.state_dict(), described)
    again, found = read_network(tmp_path / "model.safetensors")
    assert found == described
    # Others have the description that they had before there was any such setting.
    assert ("open_gates" in described.to_dict()) == bool(open_gates)
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_file_with_the_former_names_of_weights_is_read(tmp_path):
    described = info(attention="csham", strategy="transfer")
    network = described.build()
    former = {name.replace(".join.", ".fuse."): value for name, value in network.state_dict().items()}
    assert former.keys() != network.state_dict().keys()
    write_weights(tmp_path / "model.safetensors", former, described)
    again, other = read_network(tmp_path / "model.safetensors")[0], described.build()
    load_weights(other, former, "the file")
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        assert torch.equal(value, other.state_dict()[name]), name


def test_the_backbone_is_the_same_under_every_attention():
    torch.manual_seed(3)
    plain = info().build().state_dict()
    torch.manual_seed(3)
    attended = info(attention="csham").build().state_dict()
    for name, value in plain.items():
        assert torch.equal(value, attended[name]), name


def test_a_file_without_description_is_refused(tmp_path):
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="does not describe its network"):
        read_network(tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", [b"", b"12345678901234567890", b"\x80\x04."])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_network(tmp_path / "x.safetensors")
