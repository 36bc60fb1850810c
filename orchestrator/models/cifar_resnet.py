"""The residual networks of the first paper for CIFAR-10: resnet20, 32, 44, 56 and 110.

He, Zhang, Ren & Sun 2015 (arXiv:1512.03385), section 4.2: a 3 x 3 convolution, then three stages of n blocks with
16, 32 and 64 channels at 32, 16 and 8 pixels, the mean over all pixels, a linear layer: 6n + 2 layers with weights.
The shortcuts are option A: they have no weights; where a stage begins they take every second pixel, and the channels
that are new are zero. Test errors in table 6, after 164 epochs: 8.75, 7.51, 7.17, 6.97 and 6.61 %.

For a result in minutes on CPUs, `small_resnet` (small.py) is the better network: fewer layers, wider.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

STAGES = 3


class CifarResNet(nn.Module):
    """Classify small images by `num_layers` = 6n + 2 layers with weights.

    `width`: channels of the first stage; each later one has twice as many.
    Shapes: (N, channels, image_size, image_size) -> logits (N, num_classes).
    Raises: ValueError for a width below 1.
    """

    def __init__(self, num_layers: int, num_classes: int, channels: int, image_size: int, *, width: int = 16) -> None:
        super().__init__()
        del image_size  # any: the mean is over all pixels
        assert num_layers > 2
        assert (num_layers - 2) % (2 * STAGES) == 0, "6n + 2"
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width: got {width!r}, must be a whole number >= 1.")
        self.stem = _convolution(channels, width, stride=1)
        self.stem_norm = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        before = width
        for stage in range(STAGES):
            after = width * 2**stage
            for number in range((num_layers - 2) // (2 * STAGES)):
                blocks.append(PlainBlock(before, after, stride=2 if stage and not number else 1))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015 (arXiv:1502.01852), eq. 10
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.stem_norm(self.stem(images)), inplace=True))
        return self.classifier(features.mean(dim=(2, 3)))


class PlainBlock(nn.Module):
    """y = relu(shortcut(x) + norm(conv3x3(relu(norm(conv3x3(x)))))), with the shortcut of option A.

    Shapes: (N, channels_in, H, W) -> (N, channels_out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = channels_out - channels_in
        self.conv1 = _convolution(channels_in, channels_out, stride)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = _convolution(channels_out, channels_out, stride=1)
        self.norm2 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.norm1(self.conv1(x)), inplace=True)
        branch = self.norm2(self.conv2(branch))
        return F.relu(branch + self.shortcut(x), inplace=True)

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A of section 3.3: what has no weights."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def _convolution(channels_in: int, channels_out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


# The rows of table 6 but the one of 1,202 layers, which the paper trains to say that it overfits.
CIFAR_RESNETS: dict[str, Callable[..., nn.Module]] = {
    f"resnet{num_layers}": partial(CifarResNet, num_layers) for num_layers in (20, 32, 44, 56, 110)
}
