import pytest
import torch

from csham.backbones import LeNet5


def test_the_layers_are_the_papers(count):
    # LeCun et al. (1998), section II.B: C1 of 6 maps and C3 of 16 (here all connected), C5 of 120 and F6 of 84 units.
    expected = (6 * 25 + 6) + (16 * 6 * 25 + 16) + (120 * 16 * 25 + 120) + (84 * 120 + 84) + (10 * 84 + 10)
    assert count(LeNet5(10, in_chans=1)) == expected
    assert LeNet5(10).forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 16, 5, 5)


@pytest.mark.parametrize("side", [16, 28, 32, 65])
def test_images_of_other_sizes(side):
    model = LeNet5(7)
    logits = model(torch.randn(2, 3, side, side + 1))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_without_classes_it_gives_features():
    assert LeNet5(0)(torch.randn(2, 3, 32, 32)).shape == (2, 84)
