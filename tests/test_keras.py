"""Weights of the authors' layers out of Keras' files, in the layouts of Keras 2 and 3, against the golden arrays.

TensorFlow is not needed: the files are written as its versions of Keras write them, with the weights that the authors'
code had when it computed the golden arrays.
"""

import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import csham
from csham.attach.installed.attached import Attached
from csham.errors import UserError
from csham.layers.channel import ChannelAttention
from csham.layers.spatial import SpatialAttention

h5py = pytest.importorskip("h5py")

GOLDEN = Path(__file__).parent / "golden"
CHANNEL, SPATIAL = sorted(GOLDEN.glob("channel_*.npz")), sorted(GOLDEN.glob("spatial_*.npz"))
NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def arrays(file):
    # The arrays are older than the name of the convolution of both.
    return {key.replace("w.fuse.", "w.join."): value for key, value in np.load(file, allow_pickle=False).items()}


def in_keras_order(weight):
    """From torch's (out, in, ...) to Keras' (..., in, out)."""
    return np.ascontiguousarray(np.moveaxis(weight, (0, 1), (-1, -2)))


def channel_layers(golden, names=("conv1d", "conv1d_1", "conv1d_2")):
    """A list of the authors' sublayers: name, and its weights by Keras' names."""
    parts = ("avg", "max", "join")
    return [
        (name, {"kernel": in_keras_order(golden[f"w.{part}.weight"]), "bias": golden[f"w.{part}.bias"]})
        for part, name in zip(parts, names, strict=True)
    ]


def spatial_layers(golden, names=("conv2d", "batch_normalization", "conv2d_1", "batch_normalization_1")):
    def norm(part):
        return dict(
            zip(NORM, (golden[f"w.{part}.{n}"] for n in ("weight", "bias", "running_mean", "running_var")), strict=True)
        )

    return [
        (names[0], {"kernel": in_keras_order(golden["w.main.weight"])}),
        (names[1], norm("main_bn")),
        (names[2], {"kernel": in_keras_order(golden["w.neighbor.weight"])}),
        (names[3], norm("neighbor_bn")),
    ]


def write_keras2(path, layers, *, whole=False, suffix=":0"):
    """``save_weights("x.h5")``: a group for each layer, and in it a path for each weight, trainable ones first.

    Args:
        path: The file.
        layers: For each layer of the model its name and sublayers; a list of none is a layer of its own weights.
        whole: As ``model.save("x.h5")`` does.
        suffix: Of weights' names; Keras 3 has none.
    """
    with h5py.File(path, "w") as file:
        if whole:
            file.attrs["model_config"] = b"{}"
            file.create_group("optimizer_weights").create_dataset("kernel:0", data=np.zeros((3, 1, 1)))
        root = file.create_group("model_weights") if whole else file
        root.attrs["layer_names"] = [name.encode() for name, _ in layers]
        root.attrs["backend"] = b"tensorflow"
        root.attrs["keras_version"] = b"2.4.0"
        for name, sublayers in sorted(layers, key=lambda item: item[0]):
            group = root.create_group(name)
            weights = [
                (f"{f'{name}/' * (sub != name)}{sub}/{weight}{suffix}", value)
                for sub, values in sublayers
                for weight, value in values.items()
            ]
            weights.sort(key=lambda item: "moving_" in item[0])
            group.attrs["weight_names"] = [weight.encode() for weight, _ in weights]
            for weight, value in weights:
                group.create_dataset(weight, data=value)


def write_keras3(path, layers):
    """``save_weights("x.weights.h5")``: layers by class and number, sublayers by attribute, variables by number."""
    with h5py.File(path, "w") as file:
        file.create_group("vars")
        for name, sublayers in layers:
            for sub, values in sublayers:
                group = file.create_group(f"layers/{name}/{f'{sub}/' * (sub != name)}vars")
                for number, value in enumerate(values.values()):
                    group[str(number)] = value


def backbone_layer(name="stem"):
    rng = np.random.default_rng(0)
    return (
        name,
        [(name, {"kernel": rng.normal(size=(3, 3, 3, 8)).astype(np.float32), "bias": np.zeros(8, np.float32)})],
    )


WRITERS = {
    "keras2": write_keras2,
    "keras2-whole": lambda path, layers: write_keras2(path, layers, whole=True),
    "keras3-legacy": lambda path, layers: write_keras2(path, layers, whole=True, suffix=""),
    "keras3": write_keras3,
}


def kind_of(file):
    kind, act, _ = file.stem.split("_")
    return {"channel": ChannelAttention, "spatial": SpatialAttention}[kind], None if act == "linear" else act


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("file", CHANNEL + SPATIAL, ids=lambda f: f.stem)
def test_a_layer_gives_the_authors_outputs(file, write, tmp_path, reference):
    golden = arrays(file)
    build, act = kind_of(file)
    sublayers = channel_layers(golden) if build is ChannelAttention else spatial_layers(golden)
    write(tmp_path / "x.h5", [backbone_layer(), ("attention", sublayers)])
    layer = build(golden["x"].shape[1], act=act).eval()
    loaded = csham.load_keras_weights(layer, tmp_path / "x.h5")
    assert set(loaded) == {key[2:] for key in golden if key.startswith("w.")}
    assert all("attention" in path for path in loaded.values())
    torch.testing.assert_close(layer(torch.from_numpy(golden["x"])), torch.from_numpy(golden["y"]), rtol=0, atol=1e-6)


def both(size="2x16x32x32", act="relu", shift=0.0):
    golden = [arrays(GOLDEN / f"{kind}_{act}_{size}.npz") for kind in ("channel", "spatial")]
    return [{key: value + np.float32(shift) * key.startswith("w.") for key, value in one.items()} for one in golden]


def check_equal(layer, golden):
    for key, value in golden.items():
        if key.startswith("w."):
            assert torch.equal(layer.state_dict()[key[2:]], torch.from_numpy(value)), key


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_many_layers_go_to_a_network_in_order_and_one_by_its_name(write, tmp_path):
    """Twelve modules, so that the tenth must not come before the second."""
    steps = [both(shift=0.01 * number) for number in range(12)]
    names = ["csham", *(f"csham_{number}" for number in range(1, 12))]
    layers = [
        (
            name,
            [(f"channel/{n}", w) for n, w in channel_layers(c)] + [(f"spatial/{n}", w) for n, w in spatial_layers(s)],
        )
        for name, (c, s) in zip(names, steps, strict=True)
    ]
    write(tmp_path / "x.h5", [backbone_layer(), *layers])
    network = torch.nn.Sequential(*(csham.CSHAM(16) for _ in steps))
    csham.load_keras_weights(network, tmp_path / "x.h5")
    for module, (channel, spatial) in zip(network, steps, strict=True):
        check_equal(module.channel, channel)
        check_equal(module.spatial, spatial)
    alone = csham.CSHAM(16)
    csham.load_keras_weights(alone, tmp_path / "x.h5", name="csham_10")
    check_equal(alone.spatial, steps[10][1])
    with pytest.raises(UserError, match=r"has 24 of kind .* takes 2.*Say which with name="):
        csham.load_keras_weights(alone, tmp_path / "x.h5")
    with pytest.raises(UserError, match=r"several layers 'channel': .*csham.*Give the whole path"):
        csham.load_keras_weights(csham.ChannelAttention(16), tmp_path / "x.h5", name="channel")


def test_an_attached_network(tmp_path):
    network = csham.create_model("resnet20", attention="csham", strategy="transfer", num_classes=3, image_size=16)
    points = [module for module in network.modules() if isinstance(module, Attached)]
    layers = []
    for number, point in enumerate(points):
        size = point.attention.channels
        if isinstance(point.attention, ChannelAttention):
            sub = channel_layers(both(shift=0.01 * number)[0])
        else:
            spatial = both(shift=0.01 * number)[1]
            kernel = np.full((1, size, 3, 3), 0.1 * number, np.float32)
            sub = spatial_layers({**spatial, "w.neighbor.weight": kernel})
        layers.append((f"attention_{number}", sub))
    write_keras2(tmp_path / "x.h5", layers)
    plain = {key: value.clone() for key, value in network.state_dict().items() if ".attention." not in key}
    loaded = csham.load_keras_weights(network, tmp_path / "x.h5")
    assert len(loaded) == sum(
        len(point.attention.state_dict()) - 2 * hasattr(point.attention, "main") for point in points
    )
    assert points[1].attention.neighbor.weight[0, 0, 0, 0].item() == pytest.approx(0.1)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in plain.items())
    layers[1], layers[-1] = layers[-1], layers[1]
    write_keras2(tmp_path / "y.h5", layers)
    with pytest.raises(UserError, match=r"has the shapes \[\(3, 3, 32, 1\)\], .*neighbor takes \[\(3, 3, 16, 1\)\]"):
        csham.load_keras_weights(network, tmp_path / "y.h5")


def test_a_functional_network_has_its_convolutions_at_the_top(tmp_path):
    """As the authors' functional version: by depth, so the two branches' layers alternate."""
    channel, spatial = both(act="linear")
    main, main_bn, neighbor, neighbor_bn = spatial_layers(
        spatial, ("conv2d_2", "batch_norm_2", "conv2d_1", "batch_norm_1")
    )
    flat = [*channel_layers(channel), neighbor, main, neighbor_bn, main_bn]
    write_keras2(tmp_path / "x.h5", [backbone_layer(), *((name, [(name, weights)]) for name, weights in flat)])
    layer = csham.CSHAM(16, act=None)
    csham.load_keras_weights(layer, tmp_path / "x.h5")
    check_equal(layer.channel, channel)
    check_equal(layer.spatial, spatial)


def test_names_say_which_is_the_maximum_and_which_is_which(tmp_path):
    channel, spatial = both()
    average, maximum, join = channel_layers(channel, ("conv_avg", "conv_max", "conv_all"))
    write_keras2(tmp_path / "x.h5", [("a", [maximum, average, join])])
    layer = csham.ChannelAttention(16)
    assert csham.load_keras_weights(layer, tmp_path / "x.h5")["avg.bias"].endswith("conv_avg/bias:0")
    check_equal(layer, channel)
    average, maximum, join = channel_layers(channel, ("p", "q", "r"))
    write_keras2(tmp_path / "y.h5", [("a", [maximum, average, join])])
    csham.load_keras_weights(layer, tmp_path / "y.h5", names={"avg": "a/a/p"})
    check_equal(layer, channel)
    main, main_bn, neighbor, neighbor_bn = spatial_layers(spatial, ("a", "b", "c", "d"))
    write_keras2(tmp_path / "z.h5", [("s", [main, neighbor, neighbor_bn, main_bn])])
    layer = csham.SpatialAttention(16)
    csham.load_keras_weights(layer, tmp_path / "z.h5", names={"main_bn": "s/s/b"})
    check_equal(layer, spatial)
    with pytest.raises(UserError, match=r"'bn', which is no layer of the module. Its: main, neighbor, main_bn"):
        csham.load_keras_weights(layer, tmp_path / "z.h5", names={"bn": "s/s/b"})
    with pytest.raises(UserError, match=r"'s/x', which .* does not have. Those there .*: s/s/a"):
        csham.load_keras_weights(layer, tmp_path / "z.h5", names={"main_bn": "s/x"})


def test_gates(tmp_path):
    network = csham.create_model("resnet20", attention="csham", strategy="channel", gated=True, image_size=16)
    points = [module for module in network.modules() if isinstance(module, Attached)]
    steps = [(f"a_{n}", channel_layers(both()[0])) for n in range(len(points))]
    write_keras2(tmp_path / "x.h5", steps)
    with pytest.warns(UserWarning, match="has no scalars for the 9 gates"):
        csham.load_keras_weights(network, tmp_path / "x.h5")
    gated = [(name, [*sub, ("own", {"theta": np.float32(0.25)})]) for name, sub in steps]
    write_keras2(tmp_path / "y.h5", gated)
    loaded = csham.load_keras_weights(network, tmp_path / "y.h5")
    assert all(point.gate.item() == 0.25 for point in points)
    assert len([name for name in loaded if name.endswith(".gate")]) == len(points)


def test_depthwise_convolutions_and_batch_norms_of_the_backbone_are_no_attention(tmp_path):
    _, spatial = both()
    depthwise = ("depthwise_conv2d", [("depthwise_conv2d", {"depthwise_kernel": np.ones((3, 3, 16, 1), np.float32)})])
    norm = ("bn", [("bn", {name: np.ones(16, np.float32) for name in NORM})])
    write_keras2(tmp_path / "x.h5", [depthwise, norm, ("s", spatial_layers(spatial))])
    layer = csham.SpatialAttention(16)
    csham.load_keras_weights(layer, tmp_path / "x.h5")
    check_equal(layer, spatial)


def test_names_in_several_attributes(tmp_path):
    """Keras divides a list of names that would pass 64 KiB."""
    channel, _ = both()
    average, maximum, join = channel_layers(channel, ("z", "y", "x"))
    write_keras2(tmp_path / "x.h5", [(name, [(name, weights)]) for name, weights in (average, maximum, join)])
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = [b"z", b"y"], [b"x"]
    layer = csham.ChannelAttention(16)
    csham.load_keras_weights(layer, tmp_path / "x.h5")
    check_equal(layer, channel)


def test_training_on_starts_from_the_statistics_of_the_file(tmp_path, reference):
    _, golden = both()
    write_keras2(tmp_path / "x.h5", [("a", spatial_layers(golden))])
    layer = csham.SpatialAttention(16)
    csham.load_keras_weights(layer, tmp_path / "x.h5")
    before = layer.main_bn.running_mean.clone()
    layer.train()(torch.from_numpy(golden["x"]) + 100)
    moved = (layer.main_bn.running_mean - before).abs()
    layer.main_bn.reset_running_stats()
    layer(torch.from_numpy(golden["x"]) + 100)
    torch.testing.assert_close(moved, 0.01 * (layer.main_bn.running_mean - before).abs())


@pytest.fixture
def good(tmp_path):
    write_keras2(tmp_path / "good.h5", [("a", channel_layers(both()[0]))])
    return tmp_path / "good.h5"


def test_what_is_not_there_is_named(good, tmp_path):
    layer = csham.ChannelAttention(16)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "cut.h5").write_bytes(good.read_bytes()[:3000])
    write_keras2(tmp_path / "plain.h5", [backbone_layer()])
    for arguments, message in (
        ((layer, tmp_path / "none.h5"), "there is no file"),
        ((layer, tmp_path), "there is no file"),
        ((layer, tmp_path / "text.h5"), "not an HDF5 file"),
        ((layer, tmp_path / "cut.h5"), "damaged or not an HDF5 file"),
        ((layer, tmp_path / "plain.h5"), "No layer in it has variables of the shapes"),
        ((layer, good, "b"), "no attention weights in a layer 'b'. Those there that could be part of one: a/a/conv1d,"),
        ((csham.SpatialAttention(16), good), "has 0 of kind '7x7 convolution"),
        (
            (csham.ChannelAttention(16, kernel_size=5), good),
            r"has the shapes \[\(3, 1, 1\), \(1,\)\], avg takes \[\(5, 1, 1\)",
        ),
        ((torch.nn.Linear(1, 1), good), "Linear has no ChannelAttention"),
    ):
        with pytest.raises(UserError, match=message):
            csham.load_keras_weights(*arguments)
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())


def soft(file, secret):
    file["a/a/extra"] = h5py.SoftLink("/a/a/conv1d")


def dangling(file, secret):
    file["zzz"] = h5py.SoftLink("/nowhere")


def external(file, secret):
    del file["a/a/conv1d"]
    file["a/a/conv1d"] = h5py.ExternalLink(str(secret), "/a/a/conv1d")


def external_root(file, secret):
    file["model_weights"] = h5py.ExternalLink(str(secret), "/")


def circle(file, secret):
    file["a/a/again"] = file["a"]


def twice(file, secret):
    file["a/a/again"] = file["a/a/conv1d"]


def outside(file, secret):
    del file["a/a/conv1d/kernel:0"]
    file["a/a/conv1d"].create_dataset("kernel:0", (3, 1, 1), "f4", external=[(str(secret), 0, 12)])


def virtual(file, secret):
    layout = h5py.VirtualLayout((3, 1, 1), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "a/a/conv1d/kernel:0", (3, 1, 1))
    del file["a/a/conv1d/kernel:0"]
    file["a/a/conv1d"].create_virtual_dataset("kernel:0", layout)


def objects(file, secret):
    del file["a/a/conv1d/kernel:0"]
    file["a/a/conv1d"].create_dataset("kernel:0", (3, 1, 1), h5py.string_dtype())


def references(file, secret):
    del file["a/a/conv1d/kernel:0"]
    file["a/a/conv1d"].create_dataset("kernel:0", (3, 1, 1), h5py.ref_dtype)


def large_chunks(file, secret):
    del file["a/a/conv1d/kernel:0"]
    file["a/a/conv1d"].create_dataset(
        "kernel:0", (3, 1, 1), "f4", maxshape=(None, 1, 1), chunks=(2**27, 1, 1), compression="gzip"
    )


def large_array(file, secret):
    del file["a/a/conv1d/kernel:0"]
    file["a/a/conv1d"].create_dataset("kernel:0", (2**50, 1, 1), "f4", chunks=(2**20, 1, 1))


def deep(file, secret):
    file.create_group("b" + "/b" * 500)


def names_of_another_kind(file, secret):
    file.attrs["layer_names"] = 7


@pytest.mark.parametrize(
    "change",
    [
        soft, dangling, external, external_root, circle, twice, outside, virtual, objects, references, large_chunks,
        large_array, deep, names_of_another_kind,
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused(good, change, tmp_path):
    secret = tmp_path / "secret.h5"
    secret.write_bytes(good.read_bytes())
    with h5py.File(good, "r+") as file:
        change(file, secret)
    layer = csham.ChannelAttention(16)
    before = layer.avg.weight.clone()
    with pytest.raises(UserError, match=re.escape(str(good))):
        csham.load_keras_weights(layer, good)
    assert torch.equal(layer.avg.weight, before)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_none_are_refused(good, number):
    with h5py.File(good, "r+") as file:
        del file["a/a/conv1d_2/bias:0"]
        file["a/a/conv1d_2"].create_dataset("bias:0", data=np.array([number], dtype=np.float64))
    layer = csham.ChannelAttention(16)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(UserError, match=r"good\.h5: a/a/conv1d_2/bias:0 holds NaN, infinity or numbers too large"):
        csham.load_keras_weights(layer, good)
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())


def test_a_variance_below_0_is_refused(tmp_path):
    golden = dict(arrays(SPATIAL[0]))
    golden["w.main_bn.running_var"] = -golden["w.main_bn.running_var"]
    write_keras2(tmp_path / "x.h5", [("a", spatial_layers(golden))])
    layer = csham.SpatialAttention(golden["w.neighbor.weight"].shape[1])
    with pytest.raises(UserError, match=r"moving_variance:0 holds variances below 0"):
        csham.load_keras_weights(layer, tmp_path / "x.h5")


def test_spoiled_bytes_end_in_weights_or_an_error_for_users(good, tmp_path):
    content = good.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        spoiled = np.frombuffer(content, np.uint8).copy()
        spoiled[rng.integers(0, 2048, 4)] = rng.integers(0, 256, 4)
        (tmp_path / "x.h5").write_bytes(spoiled.tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                csham.load_keras_weights(csham.ChannelAttention(16), tmp_path / "x.h5")
            except UserError:
                continue


def test_without_h5py(good, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r'pip install "csham\[keras\]"'):
        csham.load_keras_weights(csham.ChannelAttention(16), good)
