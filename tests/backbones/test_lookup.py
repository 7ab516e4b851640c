"""What a name means, and what is said of one that means nothing."""

import pytest

from csham.backbones import BACKBONES, check_backbone
from csham.backbones.lookup import Meaning, find_backbone, names_in
from csham.errors import UserError


def test_a_library_that_is_not_installed_has_no_networks():
    assert names_in("no_such_library") == frozenset()


def test_detection_and_segmentation_networks_are_no_backbones():
    assert "alexnet" in names_in("torchvision")
    assert not {"fcn_resnet50", "maskrcnn_resnet50_fpn"} & names_in("torchvision")


def test_the_table_names_networks_as_their_libraries_do():
    for name, entry in BACKBONES.items():
        found = find_backbone(name)
        assert found.entry is entry
        if entry.library == "csham":
            assert name not in names_in("timm") | names_in("torchvision")
        else:
            assert found.name in names_in(entry.library)
            assert entry.library == "timm" or found.name not in names_in("timm")


@pytest.mark.parametrize(
    ("name", "library", "theirs", "in_table"),
    [
        ("resnet50", "timm", "resnet50", True),
        ("resnet50.a1_in1k", "timm", "resnet50.a1_in1k", True),
        ("timm/resnet50", "timm", "resnet50", False),
        ("timm/resnet50.a1_in1k", "timm", "resnet50.a1_in1k", False),
        ("torchvision/resnet50", "torchvision", "resnet50", False),
        ("inception_v3", "timm", "inception_v3", False),
        ("alexnet", "torchvision", "alexnet", False),
        ("googlenet", "torchvision", "googlenet", True),
        ("resnext50_grouped", "timm", "resnext50_32x4d", True),
    ],
)
def test_the_order_of_the_look_up(name, library, theirs, in_table):
    found = find_backbone(name)
    assert (found.library, found.name) == (library, theirs)
    assert (found.entry is not None) == in_table
    check_backbone(name)


def test_a_deprecated_name_of_timms_is_known_under_its_prefix():
    from timm.models import is_model

    assert is_model("tv_resnet50")
    assert find_backbone("timm/tv_resnet50") == Meaning("timm", "tv_resnet50")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "Did you mean 'resnet1"),
        ("timm/resnet18x", "Did you mean 'timm/resnet18'"),
        ("torchvision/resnet", "Did you mean 'torchvision/resnet"),
        ("resnet18.a1_in2k", "Did you mean 'resnet18.a1_in1k'"),
        ("timm/resnet18.a1_in2k", "Did you mean 'timm/resnet18.a1_in1k'"),
        ("mobilenet_v4", "Did you mean 'mobilenet_v2'"),
        ("mobilenetv2", "Did you mean 'mobilenetv2_100' or 'mobilenet_v2'"),
        ("resnet20.a1_in1k", "csham list backbones shows all. Any network of timm"),
        ("hf-hub:timm/resnet18.a1_in1k", "csham list backbones shows all. Any network of timm"),
        ("timm/", "Any network of timm's or torchvision's works by its name."),
    ],
)
def test_unknown_names_get_the_nearest_and_hear_where_all_are(name, message):
    with pytest.raises(UserError) as caught:
        check_backbone(name)
    assert f"unknown backbone {name!r}" in str(caught.value)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250


def test_weights_that_are_not_there():
    for name in ("resnet20", "lenet5", "wrn16_8", "resnext50_grouped"):
        with pytest.raises(UserError, match=f"{name} has no pretrained weights .*--weights-file FILE"):
            check_backbone(name, pretrained=True)
    with pytest.raises(UserError, match=r"no file of weights nowhere\.pth"):
        check_backbone("resnet18", weights_file="nowhere.pth")
