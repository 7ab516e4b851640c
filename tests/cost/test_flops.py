"""Counts against counts made by hand, and every attention's operators."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import csham
from csham.backbones import CifarResNet
from csham.cost import count_flops
from csham.layers.names import ATTENTIONS


def test_resnet20_by_hand():
    """ResNet-20 on 32-pixel images: He et al.'s 41 million multiply-adds, layer by layer."""
    matmul = 2 * 3 * 9 * 16 * 32**2  # stem
    matmul += 6 * 2 * 16 * 9 * 16 * 32**2  # layer1: six 3x3 convolutions
    matmul += 2 * 16 * 9 * 32 * 16**2 + 5 * 2 * 32 * 9 * 32 * 16**2 + 2 * 16 * 32 * 16**2  # layer2, its projection
    matmul += 2 * 32 * 9 * 64 * 8**2 + 5 * 2 * 64 * 9 * 64 * 8**2 + 2 * 32 * 64 * 8**2  # layer3
    matmul += 2 * 64 * 10  # fc
    maps = {16: 16 * 32**2, 32: 32 * 16**2, 64: 64 * 8**2}  # elements of each stage's maps
    rest = (2 + 1) * maps[16]  # stem: batch norm, ReLU
    block = 2 + 1 + 2 + 1 + 1  # batch norm, ReLU, batch norm, addition, ReLU
    rest += 3 * block * (maps[16] + maps[32] + maps[64])
    rest += 2 * (maps[32] + maps[64])  # batch norm of the projections
    rest += maps[64]  # mean over positions
    found = count_flops(CifarResNet(20), (3, 32, 32))
    assert (found.matmul, found.total, found.uncounted) == (matmul, matmul + rest, ())
    assert found.macs == matmul // 2


def test_a_small_vgg_by_hand():
    """Convolutions with bias, max and average pooling, two linear layers and a softmax, 20x12 pixels."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(16 * 5 * 3, 32), nn.Sigmoid(), nn.Dropout(), nn.Linear(32, 7), nn.Softmax(1),
    )  # fmt: skip
    matmul = 2 * 3 * 9 * 8 * 20 * 12 + 2 * 8 * 9 * 16 * 10 * 6 + 2 * 16 * 5 * 3 * 32 + 2 * 32 * 7
    rest = 8 * 20 * 12 + 4 * 8 * 10 * 6  # ReLU, windows of four
    rest += 2 * 16 * 10 * 6 + 16 * 10 * 6 + 4 * 16 * 5 * 3  # batch norm, ReLU, windows of four
    rest += 32 + 5 * 7  # sigmoid, softmax
    found = count_flops(network, (3, 20, 12))
    assert (found.matmul, found.total, found.uncounted) == (matmul, matmul + rest, ())


class Inverted(nn.Module):
    """MobileNet's inverted residual block, with squeeze-and-excitation and CSHAM."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.expand = nn.Conv2d(channels, hidden, 1, bias=False)
        self.expand_bn = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride=2, padding=1, groups=hidden, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(hidden)
        self.squeeze, self.excite = nn.Linear(hidden, 4), nn.Linear(4, hidden)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.csham = csham.CSHAM(channels)

    def forward(self, x):
        x = F.hardswish(self.expand_bn(self.expand(x)))
        x = F.relu6(self.depthwise_bn(self.depthwise(x)))
        w = F.hardsigmoid(self.excite(F.silu(self.squeeze(x.mean((2, 3))))))
        return self.csham(self.project(x * w[:, :, None, None]))


def test_a_mobilenet_block_with_csham_by_hand():
    """Depthwise convolution, swishes, SE and CSHAM; 6 channels, 24 inside, 12x8 pixels halved to 6x4."""
    big, half, out = 24 * 12 * 8, 24 * 6 * 4, 6 * 6 * 4
    matmul = 2 * 6 * big + 2 * 9 * half + 2 * 24 * 4 * 2 + 2 * 24 * out  # the depthwise filter sees one channel
    rest = 2 * big + 4 * big  # batch norm, hardswish
    rest += 2 * half + half  # batch norm, ReLU6
    rest += half + 2 * 4 + 3 * 24 + half  # SE: mean, SiLU, hard sigmoid, product
    # CSHAM's channel step: mean and maximum, two filters and one over both rows, three ReLUs, sigmoid, product.
    matmul += 2 * 3 * 6 * (1 + 1 + 2)
    rest += out + out + 3 * 6 + 6 + out
    # Its spatial step: mean and maximum over channels, 7x7 over both, batch norm, ReLU; pooled to 3x2, 3x3 with stride
    # 2 to 2x1, batch norm; sum, sigmoid, product.
    matmul += 2 * 2 * 49 * 6 * 4 + 2 * 6 * 9 * 2 * 1
    rest += out + out + 2 * 6 * 4 + 6 * 4 + 4 * 6 * 3 * 2 + 2 * 2 * 1 + 6 * 4 + 6 * 4 + out
    found = count_flops(Inverted(6, 24), (6, 12, 8))
    assert (found.matmul, found.total, found.uncounted) == (matmul, matmul + rest, ())


@pytest.mark.parametrize("name", ATTENTIONS)
def test_no_attention_has_an_operator_without_formula(name):
    assert count_flops(csham.create_attention(name, 64), (64, 16, 16)).uncounted == ()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x + 1, 60),
        (lambda x: x.sin_(), 60),
        (lambda x: x.amax((2, 3)), 60),
        (lambda x: x.var((2, 3)), 4 * 60),
        (F.instance_norm, 6 * 60),
        (lambda x: F.group_norm(x, 3), 6 * 60),
        (F.gelu, 5 * 60),
        (F.hardswish, 4 * 60),
        (F.celu, 3 * 60),
        (lambda x: F.glu(x[..., :4]), 2 * 24),
        (lambda x: x.softmax(1), 5 * 60),
        (lambda x: x.logsumexp(1), 3 * 60),
        (lambda x: torch.linalg.vector_norm(x, dim=1), 2 * 60),
        (lambda x: x.median(1).values, 0),
        (lambda x: F.max_pool1d(x[0], 2), 2 * 3 * 4 * 2),
        (lambda x: F.max_pool2d(x, 2), 4 * 3 * 2 * 2),
        (lambda x: F.avg_pool2d(x, 3, 1, 1), 9 * 60),
        (lambda x: F.avg_pool3d(x[None], (3, 2, 5)), 60),
        (lambda x: F.adaptive_avg_pool2d(x, 1), 60),
        (lambda x: F.adaptive_avg_pool2d(x, (2, 5)), 60),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 7 * 240),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), 31 * 240),
        (lambda x: F.interpolate(x[0], scale_factor=2, mode="linear"), 3 * 120),
        (lambda x: F.interpolate(x, scale_factor=2), 2 * (8 + 10)),  # of the indices of rows and columns
        (lambda x: x.transpose(1, 2).flip(3).contiguous().reshape(3, -1)[:, ::2] > 0, 0),
        (lambda x: x.argmax(1) * 2 + 1, 0),
        (lambda x: torch.fft.fft(torch.complex(x, x)[..., :4]), 5 * 48 * 2),
        (lambda x: torch.fft.rfft(x[..., :4]), 2.5 * 48 * 2),
    ],
)
def test_a_function_of_sixty_numbers(function, expected):
    class Network(nn.Module):
        def forward(self, x):
            return function(x)

    found = count_flops(Network(), (3, 4, 5))
    assert (found.total, found.uncounted) == (expected, ())


class Encoder(nn.Module):
    """PyTorch's own layer of a transformer, over the positions of a map."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.layer(x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("fast", [True, False])
def test_a_transformer_of_pytorch_s_by_hand(fast):
    N = 5 * 4
    matmul = 2 * N * 8 * 24 + 2 * 2 * N * N * 8 + 2 * N * 8 * 8 + 2 * 2 * N * 8 * 16
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        assert count_flops(Encoder(), (8, 5, 4)).matmul == matmul
        assert torch.backends.mha.get_fastpath_enabled() is fast
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("function", [lambda x: x.view(3, 20) @ x.view(60)[:20], lambda x: x.view(60) @ x.view(60)])
def test_products_with_a_vector_count_two_to_a_multiply_add(function):
    class Network(nn.Module):
        def forward(self, x):
            return function(x)

    found = count_flops(Network(), (3, 4, 5))
    assert (found.matmul, found.total, found.uncounted) == (120, 120, ())


def test_an_operator_without_formula_is_named():
    class Network(nn.Module):
        def forward(self, x):
            return x.lgamma()

    assert count_flops(Network(), (1, 2, 2)).uncounted == ("lgamma",)


def test_the_network_is_left_as_it_was():
    network = CifarResNet(8).train()
    network.layer1.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_flops(network, (3, 16, 16))
    assert network.training
    assert not network.layer1.training
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
