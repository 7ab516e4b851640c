from dataclasses import fields

import pytest
import torch

from csham.backbones import create_model
from csham.backbones.spec import CONNECTION_FIELDS, NETWORK_FIELDS, NetworkSpec
from csham.errors import UserError
from csham.study.grid import SHARED_FIELDS, Network
from csham.training.config import TrainConfig
from csham.training.network import NetworkInfo

OTHER = {
    "backbone": "resnet32", "attention": "bam", "strategy": "transfer", "period": 3, "position": "last",
    "points": ("layer*",), "stages": (0, -1), "gated": True, "open_gates": True,
    "attention_sha256": "0123456789abcdef" * 4,
    "backbone_sha256": "fedcba9876543210" * 4,
}  # fmt: skip


def test_every_setting_of_a_network_is_in_all_that_describes_one():
    assert set(OTHER) == set(NETWORK_FIELDS)
    config = TrainConfig(data="digits", **OTHER)
    info = NetworkInfo.of(config, ["a", "b"], 32, [0.5] * 3, [0.5] * 3)
    for described in (NetworkSpec(**OTHER), Network(**OTHER), config, info):
        assert described.network_settings == OTHER
        details = "transfer, period 3, position last, points layer*, stages 0 -1, gated, open gates, code 0123456"
        assert described.label == f"resnet32 (code fedcba9) + bam ({details})"
    assert not set(NETWORK_FIELDS) & set(SHARED_FIELDS)


@pytest.mark.parametrize("name", NETWORK_FIELDS)
def test_networks_that_differ_have_different_labels(name):
    spec = NetworkSpec("resnet20", "csham")
    assert NetworkSpec(**{**spec.network_settings, name: OTHER[name]}).label != spec.label


def test_a_plain_network_of_a_study_has_no_connection():
    plain = Network(**{**OTHER, "attention": "none"})
    defaults = {field.name: field.default for field in fields(NetworkSpec)}
    assert {name: getattr(plain, name) for name in CONNECTION_FIELDS} == {
        name: defaults[name] for name in CONNECTION_FIELDS
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet19"}, "unknown backbone 'resnet19'"),
        ({"attention": "cshan"}, "unknown attention 'cshan'. Did you mean 'csham'"),
        ({"strategy": "transfr"}, "unknown strategy 'transfr'"),
        ({"position": "middle"}, "unknown position 'middle'"),
        ({"position": "last", "points": ["a"]}, "both position='last' and points= say where"),
        ({"attention": "se", "strategy": "transfer"}, "needs an attention with a channel part"),
        ({"attention": "csham", "period": 2}, "period is a setting of strategy 'transfer'"),
        ({"attention": "bam", "open_gates": True}, "bam has no bias that its weights start from"),
        ({"stages": "0"}, "--stages must be a list or empty"),
        ({"attention_sha256": "12"}, "--attention-sha256 must be 64 hexadecimal digits"),
        ({"attention": "some_module:Gate"}, "run only where you name it. To run it, add --code some_module:Gate"),
        ({"backbone_sha256": "12"}, "--backbone-sha256 must be 64 hexadecimal digits"),
        ({"backbone": "some_module:make"}, "the backbone 'some_module:make' is code that did not come with csham"),
        ({"backbone": "resnet20", "backbone_sha256": "0" * 64}, "csham.register_backbone('resnet20', ...) before"),
        ({"backbone": "hf-hub:timm/resnet50"}, "unknown backbone 'hf-hub:timm/resnet50'"),
        ({"attention": "gate", "attention_sha256": "0" * 64}, "add --code MODULE, with the module that registers it"),
    ],
)
def test_networks_that_cannot_be(settings, message):
    with pytest.raises(UserError) as caught:
        NetworkSpec(**settings).check_names()
    assert message in str(caught.value)


def test_it_builds_what_create_model_does():
    settings = {"strategy": "transfer", "period": 2, "stages": (0, 1), "gated": True, "open_gates": True}
    torch.manual_seed(0)
    ours = NetworkSpec("resnet20", "csham", **settings).build(num_classes=5, image_size=32).state_dict()
    torch.manual_seed(0)
    theirs = create_model("resnet20", attention="csham", **settings, num_classes=5, image_size=32).state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
