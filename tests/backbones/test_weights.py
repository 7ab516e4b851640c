"""Local files of weights: what loads, what stays new with a warning, what is refused."""

import pathlib
import warnings
import zipfile

import pytest
import safetensors.torch
import timm
import torch
import torchvision.models

import csham
from csham.backbones import CifarResNet
from csham.errors import UserError
from csham.files import SEAL, sealed


def save(model, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({k: v.clone() for k, v in model.state_dict().items()}, path)
    else:
        torch.save(model.state_dict(), path)
    return path


def equal_but(ours, theirs, *modules):
    """Whether two networks have the same weights, and which modules have others."""
    expected = theirs.state_dict()
    for key, value in ours.state_dict().items():
        if not key.startswith(tuple(f"{module}." for module in modules)):
            assert torch.equal(value, expected[key]), key


@pytest.fixture(scope="module")
def resnet18():
    return timm.create_model("resnet18")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("name", "build", "classifier"),
    [
        ("resnet14", lambda: CifarResNet(14, 1000), "fc"),
        ("timm/test_resnet", lambda: timm.create_model("test_resnet"), "fc"),
        ("torchvision/squeezenet1_1", torchvision.models.squeezenet1_1, "classifier.1"),
    ],
)
def test_a_plain_network_with_other_classes(name, build, classifier, suffix, tmp_path):
    theirs = build()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    path = save(theirs, tmp_path / f"weights{suffix}")
    with pytest.warns(UserWarning, match=rf"weights{suffix} has other shapes for {classifier} of {name}: new weights"):
        ours = csham.create_model(name, num_classes=10, image_size=64, weights_file=path)
    equal_but(ours, theirs, classifier)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = csham.create_model(name, num_classes=1000, image_size=64, weights_file=str(path))
    equal_but(same, theirs)


def test_a_small_stem_and_the_classifier_stay_new(resnet18, tmp_path):
    path = save(resnet18, tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match="other shapes for conv1 and fc of resnet18"):
        ours = csham.create_model("resnet18", num_classes=10, image_size=32, weights_file=path)
    equal_but(ours, resnet18, "conv1", "fc")


def test_a_small_network_loads_into_the_same_whole(tmp_path):
    theirs = csham.create_model("mobilenetv2_100", num_classes=3, image_size=32)
    path = save(theirs, tmp_path / "weights.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equal_but(csham.create_model("mobilenetv2_100", num_classes=3, image_size=32, weights_file=path), theirs)


def test_torchvisions_googlenet_with_its_auxiliary_heads(tmp_path):
    theirs = torchvision.models.googlenet(aux_logits=False, init_weights=True)
    torch.save({**theirs.state_dict(), "aux1.conv.conv.weight": torch.zeros(2)}, tmp_path / "weights.pth")
    same = csham.create_model("googlenet", image_size=224, weights_file=tmp_path / "weights.pth")
    equal_but(same, theirs)
    with pytest.warns(UserWarning, match="for conv1 and inception3a.branch3.2 and .* and fc of googlenet"):
        small = csham.create_model("googlenet", image_size=32, num_classes=5, weights_file=tmp_path / "weights.pth")
    equal_but(small, theirs, "conv1", "fc", *(n for n, _ in small.named_modules() if n.endswith("branch3.2")))


def test_torchvisions_names_are_converted_where_timm_can(tmp_path):
    theirs = torchvision.models.densenet121(num_classes=4)
    path = save(theirs, tmp_path / "weights.pth")
    ours = csham.create_model("densenet121", num_classes=4, image_size=96, weights_file=path).eval()
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(ours(x), theirs.eval()(x))


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_checkpoints_of_others(key, prefix, tmp_path):
    theirs = CifarResNet(8, 4)
    content = {key: {prefix + k: v for k, v in theirs.state_dict().items()}, "epoch": 3}
    torch.save(content, tmp_path / "weights.pt")
    from csham.backbones.weights import load_weights_file

    ours = CifarResNet(8, 4)
    load_weights_file(ours, tmp_path / "weights.pt", "resnet8", 3)
    equal_but(ours, theirs)


def test_counts_of_batches_may_be_missing(tmp_path):
    theirs = CifarResNet(14)
    torch.save({k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}, tmp_path / "weights.pth")
    equal_but(csham.create_model("resnet14", num_classes=10, weights_file=tmp_path / "weights.pth"), theirs)


@pytest.mark.parametrize("name", ["resnet14", "timm/test_resnet"])
def test_grey_images(name, tmp_path):
    theirs = csham.create_model(name, num_classes=4)
    path = save(theirs, tmp_path / "weights.pth")
    ours = csham.create_model(name, num_classes=4, in_chans=1, weights_file=path).eval()
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(ours(x), theirs.eval()(x.expand(-1, 3, -1, -1)))


def test_the_attention_starts_from_its_seed_whatever_the_file(tmp_path):
    path = save(CifarResNet(14, 4), tmp_path / "weights.pth")
    model = csham.create_model("resnet14", num_classes=4, attention="se", weights_file=path, image_size=32)
    expected = torch.load(path)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return pathlib.Path.touch, (self.target,)


def test_a_hostile_pickle_is_not_run(tmp_path):
    torch.save({"state_dict": Hostile(tmp_path / "pwned")}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="nothing in it was run"):
        csham.create_model("resnet14", weights_file=tmp_path / "weights.pth")
    assert not (tmp_path / "pwned").exists()


def test_an_archive_whose_pickle_ends_within_a_length(tmp_path):
    theirs = save(CifarResNet(14), tmp_path / "theirs.pth")
    with zipfile.ZipFile(theirs) as archive, zipfile.ZipFile(tmp_path / "weights.pth", "w") as cut:
        for member in archive.infolist():
            content = archive.read(member)
            cut.writestr(member, content[: content.index(b"X") + 3] if member.filename.endswith(".pkl") else content)
    with pytest.raises(UserError, match=r"weights\.pth is truncated or not a file of weights"):
        csham.create_model("resnet14", num_classes=10, image_size=32, weights_file=tmp_path / "weights.pth")


def test_an_archive_that_would_unpack_to_more_than_it_says(tmp_path):
    """torch compresses nothing and would unpack whatever a file holds: a thousandth of it here."""
    theirs = save(CifarResNet(14), tmp_path / "theirs.pth")
    with zipfile.ZipFile(theirs) as archive, zipfile.ZipFile(tmp_path / "weights.pth", "w") as bomb:
        for member in archive.infolist():
            bomb.writestr(member, archive.read(member), zipfile.ZIP_STORED)
        bomb.writestr("weights/version", bytes(2**20), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"weights\.pth holds compressed parts, which torch never writes"):
        csham.create_model("resnet14", num_classes=10, image_size=32, weights_file=tmp_path / "weights.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("part", [0, 10, -1])
def test_a_truncated_file(suffix, part, tmp_path):
    path = save(CifarResNet(14), tmp_path / f"weights{suffix}")
    path.write_bytes(path.read_bytes()[:part])
    with pytest.raises(UserError, match=rf"weights{suffix} (is truncated|holds something other)"):
        csham.create_model("resnet14", weights_file=path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(1)], torch.zeros(1), {"model": {"a": 1}}, {1: 2}])
def test_files_that_hold_something_else(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth (holds no state_dict|is truncated or not a file of weights)"):
        csham.create_model("resnet14", weights_file=tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet20", r"does not fit resnet20: it has no 'layer1\.2\.conv1\.weight'; .* and [0-9,]+ more"),
        ("resnet50", r"does not fit resnet50: "),
        ("densenet121", r"does not fit densenet121: it has no 'features\.conv0\.weight'"),
        ("torchvision/squeezenet1_1", r"does not fit torchvision/squeezenet1_1: it has no 'features\.0\.weight'"),
    ],
)
def test_another_architecture_is_refused_with_the_first_differences(name, message, tmp_path):
    path = save(CifarResNet(14), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=message):
        csham.create_model(name, image_size=96, weights_file=path)


def test_a_stem_that_differs_is_refused_where_the_image_size_is_no_reason(resnet18, tmp_path):
    resnet18.conv1.weight.data = torch.zeros(64, 3, 5, 5)
    path = save(resnet18, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"'conv1\.weight' is \(64, 3, 5, 5\), not \(64, 3, 7, 7\)"):
        csham.create_model("resnet18", weights_file=path)


def test_a_run_with_attention_is_refused(tmp_path):
    theirs = csham.create_model("resnet14", attention="csham", num_classes=4, image_size=32)
    path = save(theirs, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"holds attention too.*--attention none"):
        csham.create_model("resnet14", num_classes=4, image_size=32, weights_file=path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, number):
    theirs = CifarResNet(14, 3)
    theirs.layer1[0].conv1.weight.data[0, 0, 0, 0] = number
    path = save(theirs, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"weights\.safetensors .*'layer1\.0\.conv1\.weight' holds numbers"):
        csham.create_model("resnet14", num_classes=3, image_size=32, weights_file=path)


def test_a_file_of_ours_that_was_changed_is_refused(tmp_path):
    weights = CifarResNet(14, 3).state_dict()
    path = tmp_path / "model.safetensors"
    content = sealed(safetensors.torch.save(weights, metadata={"format": "pt", "seal": SEAL}))
    path.write_bytes(content)
    csham.create_model("resnet14", num_classes=3, image_size=32, weights_file=path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    with pytest.raises(UserError, match=r"model\.safetensors was changed since csham wrote it"):
        csham.create_model("resnet14", num_classes=3, image_size=32, weights_file=path)
