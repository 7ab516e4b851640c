"""Networks made for 224-pixel images, with a stem and head for images of 32 to 64 pixels.

Their stems divide the side by four before the first block, and would leave the last blocks maps of one pixel. What
takes their place is what the published results on CIFAR use, as in the collection weiaicunzai/pytorch-cifar100.
"""

from __future__ import annotations

from timm.models.densenet import DenseNet
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vgg import VGG, ConvMlp
from torch import Tensor, nn
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, Inception

__all__ = ["fit_small_images", "group_first_convolutions"]


def fit_small_images(model: nn.Module) -> tuple[str, ...]:
    """Change a network of the table in place.

    - ResNet, ResNeXt, Wide ResNet: a 3x3 convolution of stride 1, no pooling.
    - DenseNet: the same.
    - VGG: the fully connected layers take one value a channel, not 7 x 7; dropout of a half after each but the last.
    - MobileNetV2: the stem and the first block that halves the map no longer do.
    - GoogLeNet: one 3x3 convolution of 192 channels for the stem; a second 3x3 convolution where the paper has one of
      5x5 and torchvision one of 3x3; dropout of 0.4 before the classifier, as the paper has it, not torchvision's 0.2.

    Args:
        model: As timm or torchvision builds it.

    Returns:
        Modules whose weights are new, or no longer there.
    """
    if isinstance(model, ResNet):
        return _resnet(model)
    if isinstance(model, DenseNet):
        return _densenet(model)
    if isinstance(model, VGG):
        return _vgg(model)
    if isinstance(model, EfficientNet):
        return _mobilenet(model)
    assert isinstance(model, GoogLeNet)
    return _googlenet(model)


def group_first_convolutions(model: ResNet) -> None:
    """Let the groups of a ResNeXt see their part of a block's input only, in place.

    The 1x1 convolution that begins a bottleneck gets as many groups as the 3x3 that follows. In the paper (figure 3)
    each path sees the whole input.
    """
    for block in model.modules():
        if isinstance(block, Bottleneck):
            first = block.conv1
            block.conv1 = nn.Conv2d(first.in_channels, first.out_channels, 1, groups=block.conv2.groups, bias=False)
            nn.init.kaiming_normal_(block.conv1.weight, mode="fan_out", nonlinearity="relu")


def _resnet(model: ResNet) -> tuple[str, ...]:
    model.conv1 = _conv3x3(model.conv1)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return ("conv1",)


def _densenet(model: DenseNet) -> tuple[str, ...]:
    model.features.conv0 = _conv3x3(model.features.conv0)
    nn.init.kaiming_normal_(model.features.conv0.weight)
    model.features.pool0 = nn.Identity()
    return ("features.conv0",)


def _vgg(model: VGG) -> tuple[str, ...]:
    model.pre_logits = ConvMlp(model.num_features, model.head_hidden_size, 1, drop_rate=0.5)
    model.head.drop.p = 0.5
    for layer in (model.pre_logits.fc1, model.pre_logits.fc2):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return ("pre_logits",)


def _mobilenet(model: EfficientNet) -> tuple[str, ...]:
    model.conv_stem.stride = (1, 1)
    model.blocks[1][0].conv_dw.stride = (1, 1)
    return ()


def _googlenet(model: GoogLeNet) -> tuple[str, ...]:
    model.transform_input = False  # it was for the weights of the stem
    model.dropout.p = 0.4
    model.conv1 = BasicConv2d(model.conv1.conv.in_channels, 192, kernel_size=3, padding=1)
    _draw_as_googlenet(model.conv1.conv.weight)
    for name in ("maxpool1", "conv2", "conv3", "maxpool2"):
        setattr(model, name, nn.Identity())
    added = []
    for name, block in model.named_children():
        if isinstance(block, Inception):
            channels = block.branch3[1].conv.out_channels
            block.branch3.append(BasicConv2d(channels, channels, kernel_size=3, padding=1))
            _draw_as_googlenet(block.branch3[2].conv.weight)
            added.append(f"{name}.branch3.2")
    return ("conv1", "conv2", "conv3", *added)


def _draw_as_googlenet(weight: Tensor) -> None:
    nn.init.trunc_normal_(weight, std=0.01, a=-2, b=2)


def _conv3x3(old: nn.Conv2d) -> nn.Conv2d:
    return nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)
