"""explain: one explanation per image, whose arrays are what attention_maps and the network itself give."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import csham
from csham.explain import explain, explain_together
from csham.inference.trained import Trained
from csham.inference.transform import ImageTransform
from csham.layers.names import ATTENTIONS
from csham.training.network import NetworkInfo

pytestmark = pytest.mark.usefixtures("reference")


@pytest.fixture(scope="module")
def network(attended):
    return csham.load(attended)


@pytest.fixture(scope="module")
def files(images):
    return sorted((images / "bee").iterdir())[:5]


def untrained(attention, backbone="lenet5", size=16):
    info = NetworkInfo(
        backbone=backbone,
        attention=attention,
        strategy="sequential",
        position="auto",
        gated=False,
        num_classes=3,
        image_size=size,
        classes=["ant", "bee", "cow"],
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    transform = ImageTransform(size, info.mean, info.std)
    return Trained(info.build().eval(), info, transform, "nowhere", "best")


def test_an_explanation_is_what_the_network_and_attention_maps_say(network, files):
    found = list(explain(network, files, batch_size=2))
    assert [one.name for one in found] == [str(path) for path in files]
    expected = network.probabilities(files)
    with csham.attention_maps(network.network) as maps, torch.no_grad():
        network.network(network.batch(files))
    for row, one in enumerate(found):
        np.testing.assert_allclose(one.probabilities, expected[row], rtol=1e-4, atol=1e-6)
        assert np.array_equal(one.pixels, network.transform.pixels(files[row]))
        assert one.predictions == sorted(one.predictions, key=lambda item: -item[1])
        assert one.predictions[0][0] == network.classes[one.predicted] == network.classes[one.target]
        assert list(one.stages) == ["layer1", "layer2", "layer3"]
        assert [stage.channels for stage in one.stages.values()] == [16, 32, 64]
        shown = {name: kinds for stage in one.stages.values() for name, kinds in stage.points.items()}
        assert shown.keys() == maps.keys()
        for name, kinds in maps.items():
            assert shown[name].keys() == kinds.keys()
            for kind, weights in kinds.items():
                wanted = weights[row, 0] if kind == "spatial" else weights[row]
                np.testing.assert_allclose(shown[name][kind], wanted, rtol=1e-4, atol=1e-6)
        assert one.stages["layer1"].spatial[0] == "layer1.1.bn2"
        assert one.stages["layer1"].channel[0] == "layer1.2.bn2"
        assert (one.gradcam.shape, one.gradcam_layer, one.no_maps) == ((4, 4), "layer3.2", None)


def test_the_file_of_arrays_holds_all_and_needs_no_pickle(network, files, tmp_path):
    (one,) = explain(network, files[:1])
    one.save_npz(tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz", allow_pickle=False) as content:
        assert set(content.files) == set(one.arrays())
        assert np.array_equal(content["layer2.1.bn2/spatial"], one.stages["layer2"].points["layer2.1.bn2"]["spatial"])
        assert np.array_equal(content["gradcam"], one.gradcam)
        assert list(content["classes"]) == network.classes
        assert str(content["gradcam_layer"]) == "layer3.2"
    assert [path.name for path in tmp_path.iterdir()] == ["one.npz"]


def test_a_class_by_name_or_index_is_what_gradcam_is_for(network, files):
    by_name, by_index = (next(explain(network, files[:1], target=target)) for target in ("cow", 2))
    assert by_name.target == by_index.target == 2
    assert np.array_equal(by_name.gradcam, by_index.gradcam)
    maps = [next(explain(network, files[:1], target=name)).gradcam for name in network.classes]
    assert not np.array_equal(maps[0], maps[1])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"target": "cowl"}, r"unknown class of resnet20 \+ csham \(transfer\) 'cowl'. Did you mean 'cow'"),
        ({"target": 3}, "has classes 0 to 2, asked for 3"),
        ({"layer": "layer9"}, "unknown layer 'layer9'. Did you mean 'layer"),
        ({"batch_size": 0}, "at least 1"),
        ({"top": 0}, "at least 1"),
    ],
)
def test_choices_that_cannot_work_are_told_before_the_first_image(network, choice, message):
    with pytest.raises(ValueError, match=message):
        explain(network, iter([]), **choice)


def test_images_stream_and_unreadable_ones_stop_the_rest_only_where_nobody_listens(network, files, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    taken, told = [], []

    def source():
        for image in [files[0], bad, Image.open(files[1]), np.zeros((20, 30, 3), np.uint8)] * 2:
            taken.append(image)
            yield image

    found = explain(network, source(), batch_size=2, on_error=lambda image, err: told.append((image, str(err))))
    assert next(found).name == str(files[0])
    assert len(taken) == 3
    assert [one.name for one in found] == ["image 2", "image 3", str(files[0]), "image 6", "image 7"]
    assert [image for image, _ in told] == [bad, bad]
    assert "bad.png" in told[0][1]
    with pytest.raises(ValueError, match=r"bad\.png"):
        list(explain(network, [files[0], bad]))


def test_two_networks_see_the_same_image_each_in_its_own_way(network, files):
    other = untrained("none", size=24)
    pairs = list(explain_together([network, other], files[:3], layer="layer2"))
    assert len(pairs) == 3
    for first, second in pairs:
        assert first.name == second.name
        assert (len(first.pixels), len(second.pixels)) == (16, 24)
        assert (first.gradcam_layer, second.gradcam_layer) == ("layer2", "act2")
        assert second.no_maps == "no attention attached"


@pytest.mark.parametrize(
    "attention",
    [pytest.param(a, marks=[] if a in ("a2", "simam") else [pytest.mark.slow, pytest.mark.long]) for a in ATTENTIONS],
)
def test_every_attention_shows_what_it_has(attention):
    trained = untrained(attention, "resnet20")
    (one,) = explain(trained, [np.full((16, 16, 3), 99, np.uint8)])
    kinds = set(ATTENTIONS[attention].maps)
    for stage in one.stages.values():
        assert all(set(maps) == kinds for maps in stage.points.values())
        spatial, channel = stage.spatial, stage.channel
        assert (spatial is not None) == bool(kinds & {"spatial", "full"})
        assert (channel is not None) == bool(kinds & {"channel", "full"})
        if "full" in kinds:
            full = stage.points[spatial[0]]["full"]
            np.testing.assert_allclose(spatial[1], full.sum(0) / len(full), rtol=1e-5)
            np.testing.assert_allclose(channel[1], full.reshape(len(full), -1).sum(1) / full[0].size, rtol=1e-5)
    assert (one.no_maps is None) == bool(kinds)
    assert one.gradcam.shape == (4, 4)
    if not kinds:
        assert one.no_maps == f"{attention} adds to the feature map and weighs nothing"


def test_answers_that_are_no_numbers_are_told():
    trained = untrained("none")
    with torch.no_grad():
        trained.network.fc.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        list(explain(trained, [np.zeros((16, 16, 3), np.uint8)]))


def test_the_network_is_left_as_it_was(network, files):
    def state(model):
        return [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]

    before = state(network.network)
    list(explain(network, files))
    assert state(network.network) == before
    assert all(p.grad is None for p in network.network.parameters())


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_network_is_explained_too(network, files):
    compiled = dataclasses.replace(network, network=torch.compile(network.network, backend="aot_eager"))
    expected = list(explain(network, files[:2]))
    for one, other in zip(explain(compiled, files[:2]), expected, strict=True):
        np.testing.assert_allclose(one.gradcam, other.gradcam, rtol=1e-4, atol=1e-5)
        assert one.arrays().keys() == other.arrays().keys()
