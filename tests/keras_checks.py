"""What has to hold of csham.keras on every backend of Keras; test_keras_backends runs it once for each."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import csham
from csham.errors import UserError

keras = pytest.importorskip("keras")

from csham.keras import CSHAM, ChannelAttention, Gated, SpatialAttention, attach_keras, copy_weights  # noqa: E402

BACKEND = keras.backend.backend()
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
FORMATS = ("channels_last", "channels_first")
NORM = ("weight", "bias", "running_mean", "running_var")
# Of float32, after sums in another order over 3,000 values.
EXACT = {"rtol": 0, "atol": 1e-5}

pytestmark = pytest.mark.usefixtures("reference")


@pytest.fixture(autouse=True)
def _start():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


def numpy(x):
    return np.asarray(keras.ops.convert_to_numpy(x))


def shaped(x, data_format):
    """A map (B, C, H, W) in a data format."""
    return x if data_format == "channels_first" else np.moveaxis(x, 1, 3)


def unshaped(y, data_format):
    return numpy(y) if data_format == "channels_first" else np.moveaxis(numpy(y), 3, 1)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gradient(layer, x, grad_y):
    """The gradient of ``sum(layer(x) * grad_y)``."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(layer(x) * grad_y)
        return tape.gradient(total, x).numpy()
    if BACKEND == "jax":
        import jax

        return np.asarray(jax.grad(lambda x: (layer(x) * grad_y).sum())(x))
    x = keras.ops.convert_to_tensor(x).requires_grad_()
    (layer(x) * keras.ops.convert_to_tensor(grad_y)).sum().backward()
    return x.grad.cpu().numpy()


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("file", GOLDEN, ids=lambda f: f.stem)
def test_outputs_and_gradients_are_the_authors(file, data_format):
    golden = np.load(file, allow_pickle=False)
    kind, act, _ = file.stem.split("_")
    build = {"channel": ChannelAttention, "spatial": SpatialAttention}[kind]
    layer = build(act={"relu": "relu", "linear": None}[act], data_format=data_format)
    # Twice where there is one: on one thread PyTorch refuses a gradient of Keras' Conv2D to one channel of one image.
    x, y, grad_x, grad_y = (
        np.concatenate([golden[n]] * (3 - len(golden["x"]))) for n in ("x", "y", "grad_x", "grad_y")
    )
    x = shaped(x, data_format)
    layer.build(x.shape)

    def kernel(name):
        return np.ascontiguousarray(np.moveaxis(golden[f"w.{name}.weight"], (0, 1), (-1, -2)))

    if kind == "channel":
        for part, name in ((layer.avg, "avg"), (layer.max, "max"), (layer.join, "fuse")):
            part.set_weights([kernel(name), golden[f"w.{name}.bias"]])
    else:
        for name in ("main", "neighbor"):
            getattr(layer, name).set_weights([kernel(name)])
            getattr(layer, f"{name}_bn").set_weights([golden[f"w.{name}_bn.{part}"] for part in NORM])
    np.testing.assert_allclose(unshaped(layer(x), data_format), y, **EXACT)
    there = gradient(layer, x, shaped(grad_y, data_format))
    np.testing.assert_allclose(unshaped(there, data_format), grad_x, **EXACT)


def stirred(module):
    """A module of PyTorch's whose norms have something to say."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if "_bn." in name and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.eval()


# Smallest; a side of one; nothing left over by the pooling; odd; upsampling that float32 rounds wrongly.
SIZES = [(1, 1), (1, 5), (2, 2), (3, 2), (5, 7), (142, 9)]


@pytest.mark.parametrize("data_format", FORMATS)
def test_any_size_is_as_in_pytorch_known_or_not(data_format):
    module = stirred(csham.CSHAM(6, 5, None))
    inputs = keras.Input(shaped(np.empty((1, 6, 1, 1)), data_format).shape[1:])
    unknown = keras.Input([None if size == 1 else size for size in inputs.shape[1:]])
    layer = CSHAM(5, None, data_format=data_format)
    model = keras.Model(unknown, layer(unknown))
    assert model.output.shape == unknown.shape
    copy_weights(module, layer)
    for height, width in SIZES:
        x = noise(2, 6, height, width)
        expected = module(torch.from_numpy(x)).detach().numpy()
        for one in (layer, model):
            np.testing.assert_allclose(unshaped(one(shaped(x, data_format)), data_format), expected, **EXACT)
        y = model.predict(shaped(x, data_format), verbose=0)
        np.testing.assert_allclose(unshaped(y, data_format), expected, **EXACT)
    x, grad_y = noise(2, 2, 6, 5, 7)
    given = torch.from_numpy(x).requires_grad_()
    module(given).backward(torch.from_numpy(grad_y))
    grad_x = gradient(layer, shaped(x, data_format), shaped(grad_y, data_format))
    np.testing.assert_allclose(unshaped(grad_x, data_format), given.grad.numpy(), **EXACT)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow traces unknown sizes")
def test_one_graph_of_tensorflow_takes_any_size():
    import tensorflow as tf

    layer = SpatialAttention(data_format="channels_last")
    layer.build((None, None, None, 6))
    graph = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 6])])
    trained = tf.function(lambda x: layer(x, training=True), input_signature=[tf.TensorSpec([None, None, None, 6])])
    for height, width in SIZES:
        x = noise(2, height, width, 6)
        np.testing.assert_allclose(numpy(graph(x)), numpy(layer(x)), **EXACT)
        assert np.isfinite(numpy(trained(x))).all()
    assert graph.experimental_get_tracing_count() == 1
    assert all(np.isfinite(value).all() for value in layer.get_weights())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("connection", ["sequential", "reversed", "parallel", "reapply"])
def test_connections_and_training_are_as_in_pytorch(connection, training):
    class Block(nn.Module):
        def forward(self, x):
            return module.attend(x, None, connection)

    module = stirred(csham.CSHAM(4)).train(training)
    layer = CSHAM(connection=connection, data_format="channels_first")
    x = noise(3, 4, 9, 6)
    layer.build(x.shape)
    copy_weights(module, layer)
    y, channel, spatial = layer(x, training=training, return_weights=True)
    np.testing.assert_allclose(numpy(y), Block()(torch.from_numpy(x)).detach().numpy(), **EXACT)
    assert (channel.shape, spatial.shape) == ((3, 4), (3, 9, 6))
    once = x * numpy(channel)[:, :, None, None] * numpy(spatial)[:, None]
    expected = once * numpy(channel)[:, :, None, None] if connection == "reapply" else once
    np.testing.assert_allclose(numpy(y), expected, **EXACT)


def test_norms_follow_as_the_authors():
    layer = SpatialAttention(act=None, data_format="channels_last")
    x = noise(2, 8, 8, 3)
    layer.build(x.shape)
    means = numpy(layer.main(np.stack([x.mean(3), x.max(3)], -1))).mean()
    layer(x)
    assert numpy(layer.main_bn.moving_mean) == 0
    layer(x, training=True)
    np.testing.assert_allclose(numpy(layer.main_bn.moving_mean), [0.01 * means], rtol=1e-4)
    layer.trainable = False
    before = numpy(layer.main_bn.moving_mean).copy()
    layer(x, training=True)
    assert numpy(layer.main_bn.moving_mean) == before
    assert layer.main_bn.epsilon == layer.neighbor_bn.epsilon == 1e-3


def small_model(attention, size=16):
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(8, 3, padding="same")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(attention(x))
    return keras.Model(inputs, keras.layers.Dense(4, dtype="float32")(x))


def learn(model, jit_compile="auto", steps=1):
    """Steps of training; the paths of weights that it did not change."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss, jit_compile=jit_compile)
    before = [numpy(variable).copy() for variable in model.weights]
    history = model.fit(noise(8, *model.input_shape[1:]), np.arange(8) % 4, batch_size=8, epochs=steps, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    pairs = zip(model.weights, before, strict=True)
    return [variable.path for variable, old in pairs if np.array_equal(numpy(variable), old)]


def a_convolution_learns(policy):
    """Nothing of csham: on a CPU without instructions for a type PyTorch refuses the gradient of such filters."""
    conv = keras.layers.Conv2D(1, 3, dtype=policy)
    head = [keras.layers.Flatten(dtype="float32"), keras.layers.Dense(4, dtype="float32")]
    try:
        learn(keras.Sequential([keras.Input((8, 8, 2)), conv, *head]), jit_compile=False)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("act", ["relu", None])
def test_every_weight_learns(act, policy):
    if BACKEND == "torch" and not a_convolution_learns(policy):
        pytest.skip(f"PyTorch has no gradient of Keras' own Conv2D to one channel in {policy} on this processor")
    keras.config.set_dtype_policy(policy)
    layer = CSHAM(act=act, dropout=0.3)
    # The optimiser of float16 scales the loss by 2**15 at first, and leaves out steps that overflow.
    assert not learn(small_model(layer), BACKEND != "torch", 20 if policy == "mixed_float16" else 1)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    precise, layer = CSHAM(data_format="channels_last"), CSHAM(data_format="channels_last", dtype=policy)
    x = noise(2, 20, 20, 8)
    y = precise(x)
    mixed = layer(x)
    layer.set_weights(precise.get_weights())
    mixed = layer(x)
    assert keras.backend.standardize_dtype(mixed.dtype) == policy.removeprefix("mixed_")
    assert {keras.backend.standardize_dtype(variable.dtype) for variable in layer.weights} == {"float32"}
    np.testing.assert_allclose(numpy(keras.ops.cast(mixed, "float32")), numpy(y), atol=0.05)
    # The sum over the map is past float16, its average is not.
    large = layer(np.full((1, 64, 64, 8), 60.0, np.float32))
    assert np.isfinite(numpy(keras.ops.cast(large, "float32"))).all()


@pytest.mark.parametrize("gated", [False, True])
def test_a_saved_model_computes_the_same(gated, tmp_path):
    layer = CSHAM(5, None, dropout=0.1, connection="reapply", data_format="channels_last", name="attention")
    model = small_model(Gated(layer) if gated else layer)
    learn(model)
    model.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    x = noise(2, 16, 16, 3)
    np.testing.assert_array_equal(model.predict(x, verbose=0), again.predict(x, verbose=0))
    restored = again.layers[2].layer if gated else again.layers[2]
    assert restored.get_config() == layer.get_config()
    assert layer.get_config()["kernel_size"] == 5
    assert type(restored) is CSHAM


@pytest.mark.parametrize("build", [CSHAM, ChannelAttention, SpatialAttention])
def test_weights_go_to_pytorch_and_back_directly_and_by_files(build, tmp_path):
    layer = build(data_format="channels_first")
    x = noise(2, 8, 9, 6)
    layer(x)
    for variable in layer.weights:
        variable.assign(np.random.default_rng(1).uniform(0.1, 1, variable.shape))
    module = getattr(csham, build.__name__)(8).eval()
    copied = copy_weights(layer, module)
    assert set(copied) == {key for key in module.state_dict() if "num_batches" not in key}
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach().numpy(), numpy(layer(x)), **EXACT)

    inputs = keras.Input((8, 9, 6))
    keras.Model(inputs, layer(inputs)).save_weights(tmp_path / "x.weights.h5")
    from_file = getattr(csham, build.__name__)(8).eval()
    csham.load_keras_weights(from_file, tmp_path / "x.weights.h5")
    for key, value in from_file.state_dict().items():
        torch.testing.assert_close(value, module.state_dict()[key], rtol=0, atol=0)

    back = build(data_format="channels_first")
    back.build(x.shape)
    assert copy_weights(module, back).keys() == copied.keys()
    for one, other in zip(back.get_weights(), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def built(layer, channels=8):
    layer.build((None, 4, 4, channels))
    return layer


def last(build, *args, **kwargs):
    return build(*args, data_format="channels_last", **kwargs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChannelAttention(4), "kernel_size must be an odd whole number, got 4"),
        (lambda: ChannelAttention(act="gelu"), "act must be 'relu' or None"),
        (lambda: SpatialAttention(dropout=1.0), "dropout must be at least 0 and below 1"),
        (lambda: CSHAM(connection="paralel"), "Did you mean 'parallel'"),
        (lambda: CSHAM(data_format="NCHW"), "data_format"),
        (lambda: last(CSHAM)(np.ones((2, 8), np.float32)), r"expected a feature map \(B, H, W, C\).*\(2, 8\)"),
        (lambda: last(CSHAM)(keras.Input((4, 4, None))), "with a known number of channels"),
        (lambda: copy_weights(csham.CSHAM(8), csham.CSHAM(8)), "one has to be a layer or model of Keras"),
        (lambda: copy_weights(last(CSHAM), csham.CSHAM(8)), "has no weights yet"),
        (lambda: copy_weights(built(last(CSHAM, 5)), csham.CSHAM(8)), r"has the shape \(5, 1, 1\) in Keras"),
        (lambda: copy_weights(csham.CSHAM(4), built(last(CSHAM))), r"neighbor.weight takes \(3, 3, 4, 1\)"),
        (lambda: copy_weights(csham.CSHAM(8, act=None), built(last(CSHAM))), "step 1 is ChannelAttention with act="),
        (lambda: copy_weights(csham.ChannelAttention(8), built(last(CSHAM))), "step 2 is SpatialAttention"),
        (lambda: copy_weights(csham.CSHAM(8), built(Gated(last(CSHAM)))), "1 gates in Keras, 0 in PyTorch"),
        (lambda: attach_keras(small_model(lambda x: x)), "adds a branch to a shortcut. Name layers with"),
        (lambda: attach_keras(small_model(lambda x: x), points="conv9d"), "points='conv9d' names no layer"),
        (lambda: attach_keras(small_model(lambda x: x), points="dense*"), r"returns \(None, 4\), no feature map"),
        (lambda: attach_keras(small_model(lambda x: x), strategy="transfr"), "Did you mean 'transfer'"),
        (lambda: attach_keras(small_model(lambda x: x), ChannelAttention, strategy="transfer"), "one of CSHAM's"),
        (lambda: attach_keras(last(CSHAM)), "CSHAM is no functional model"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


class Block(nn.Module):
    def __init__(self, before, channels):
        super().__init__()
        self.first = nn.Conv2d(before, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(before, channels, 1) if before != channels else nn.Identity()

    def forward(self, x):
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


WIDTHS = [(8, 8), (8, 8), (8, 8), (8, 12), (12, 12)]


def same_networks():
    """One network of five blocks in PyTorch and in Keras, where an addition is a layer or an operator."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *(Block(*widths) for widths in WIDTHS)).eval()
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    for number, (before, channels) in enumerate(WIDTHS, 1):
        y = keras.layers.Conv2D(channels, 3, padding="same", activation="relu", name=f"first{number}")(x)
        y = keras.layers.Conv2D(channels, 3, padding="same", name=f"second{number}")(y)
        if before != channels:
            x = keras.layers.Conv2D(channels, 1, name=f"shortcut{number}")(x)
        x = keras.ops.relu(x + y if number % 2 else keras.layers.Add()([y, x]))
    model = keras.Model(inputs, x)
    convs = {"stem": network[0]}
    for number, block in enumerate(network[1:], 1):
        convs |= {f"{name}{number}": part for name, part in block.named_children()}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            weight, bias = (tensor.detach().numpy() for tensor in convs[layer.name].parameters())
            layer.set_weights([weight.transpose(2, 3, 1, 0), bias])
    return network, model


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("strategy", csham.attach.STRATEGIES)
def test_strategies_are_those_of_attach(strategy, gated):
    network, model = same_networks()
    x = noise(2, 12, 12, 3)
    expected = model.predict(x, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        csham.attach(network, "csham", strategy=strategy, gated=gated, input_size=(3, 12, 12))
    attended = attach_keras(model, strategy=strategy, gated=gated)
    if gated:
        np.testing.assert_array_equal(attended.predict(x, verbose=0), expected)
        for name, parameter in network.named_parameters():
            if name.endswith("gate"):
                parameter.data.fill_(0.3)
    copied = copy_weights(stirred(network), attended)
    assert len(copied) == sum(".attention." in key or key.endswith("gate") for key in network.state_dict()) - sum(
        "num_batches" in key for key in network.state_dict()
    )
    with torch.no_grad():
        y = network(torch.from_numpy(np.moveaxis(x, 3, 1))).numpy()
    np.testing.assert_allclose(np.moveaxis(attended.predict(x, verbose=0), 3, 1), y, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)


def test_a_network_with_gates_goes_to_pytorch_through_a_file_too(tmp_path):
    network, model = same_networks()
    csham.attach(network, "csham", strategy="transfer", gated=True, input_size=(3, 12, 12))
    attended = attach_keras(model, strategy="transfer", gated=True, dropout=0.2)
    rng = np.random.default_rng(0)
    for layer in attended.layers:
        if isinstance(layer, Gated):
            layer.set_weights([rng.uniform(0.1, 1, value.shape) for value in layer.get_weights()])
    attended.save_weights(tmp_path / "x.weights.h5")
    loaded = csham.load_keras_weights(network, tmp_path / "x.weights.h5")
    from_file = {name: value.clone() for name, value in network.state_dict().items()}
    assert copy_weights(attended, network).keys() == loaded.keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, from_file[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channel", "spatial"), [("ResNet50", 9, 7), ("MobileNetV2", 6, 4)])
def test_networks_of_keras_keep_their_weights_and_outputs_and_learn(name, channel, spatial, tmp_path):
    host = getattr(keras.applications, name)(
        weights=None, input_shape=(64, 64, 3), classes=4, classifier_activation=None
    )
    layers = len(host.layers)
    attended = attach_keras(host, strategy="transfer", gated=True)
    found = [layer for layer in attended.layers if isinstance(layer, Gated)]
    parts = [type(layer.layer) for layer in found]
    assert [parts.count(ChannelAttention), parts.count(SpatialAttention)] == [channel, spatial]
    assert len(host.layers) == layers == len(attended.layers) - len(found)
    for layer in host.layers:
        for one, other in zip(layer.get_weights(), attended.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    x = noise(2, 64, 64, 3)
    np.testing.assert_array_equal(attended.predict(x, verbose=0), host.predict(x, verbose=0))

    before = [numpy(variable).copy() for variable in host.weights]
    open_one = attach_keras(host, strategy="transfer")
    unchanged = learn(open_one, False)  # compiling takes minutes
    assert not [path for path in unchanged if "attention" in path]
    for variable, old in zip(host.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(variable), old)
    open_one.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), open_one.predict(x, verbose=0))


def test_a_frozen_backbone_within_a_model_and_points_by_name():
    inputs = keras.Input((12, 12, 8))
    x = keras.layers.Conv2D(8, 3, padding="same", name="branch")(inputs)
    backbone = keras.Model(inputs, keras.layers.Add()([inputs, x]), name="backbone")
    backbone.trainable = False
    model = keras.Sequential([keras.Input((12, 12, 8)), backbone, keras.layers.Conv2D(4, 1, name="head")])
    x = noise(2, 12, 12, 8)
    attended = attach_keras(model, gated=True)
    np.testing.assert_array_equal(attended.predict(x, verbose=0), model.predict(x, verbose=0))
    assert attended.get_layer("backbone").get_layer("branch_attention").layer.connection == "sequential"
    assert "branch" not in " ".join(v.path for v in attended.trainable_weights if "attention" not in v.path)
    assert sum("attention" in variable.path for variable in attended.trainable_weights) == 13
    for points in ("bran*", ["branch"], lambda layer: layer.name == "branch"):
        named = attach_keras(backbone, ChannelAttention, points=points, kernel_size=5)
        assert named.get_layer("branch_attention").kernel_size == 5
