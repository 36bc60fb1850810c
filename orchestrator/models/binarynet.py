"""A network for binary layers, after BinaryNet's for CIFAR-10: VGG with batch norms before activations that saturate.

Courbariaux, Hubara, Soudry, El-Yaniv & Bengio 2016 (arXiv:1602.02830), section 2 and Algorithm 1. A layer is a product,
a max pooling where a stage ends, a batch norm, a Hardtanh: a binary layer takes the signs of what the norm before it
puts out, which has both signs, and pools sums, not signs. With width 128, depth 2 and 32 pixels it is the paper's
2 x 128C3 - MP2 - 2 x 256C3 - MP2 - 2 x 512C3 - MP2 - 2 x 1024FC - 10, without the last norm. Which layers are binary
is the experiment's `precision`; in fp32 it is an ordinary network with Hardtanh.
"""

from torch import Tensor, nn

from orchestrator.models.small import num_halvings


class BinaryNet(nn.Module):
    """Classify small images by stages of convolutions and max pooling, then by three linear layers.

    `width`: channels of the first stage; each later one has twice as many, the hidden linear layers eight times.
    `depth`: convolutions a stage.
    Shapes: (N, channels, image_size, image_size) -> logits (N, num_classes).
    Raises: ValueError for an option below 1.
    """

    def __init__(self, num_classes: int, channels: int, image_size: int, *, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, must be a whole number >= 1.")
        hidden, halvings = 8 * width, num_halvings(image_size)
        layers: list[nn.Module] = []
        for stage in range(max(1, halvings)):
            for number in range(depth):
                pooled = stage < halvings and number == depth - 1
                layers.append(_convolution(channels, width * 2**stage, pooled=pooled))
                channels = width * 2**stage
        side = image_size // 2**halvings
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            _linear(channels * side**2, hidden),
            _linear(hidden, hidden),
            nn.Linear(hidden, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):  # Glorot & Bengio 2010, eq. 16, as the paper's code has it
                nn.init.xavier_uniform_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits


def _convolution(channels_in: int, channels_out: int, *, pooled: bool) -> nn.Sequential:
    layer = nn.Sequential()
    layer.add_module("conv", nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False))
    if pooled:
        layer.add_module("pool", nn.MaxPool2d(2))
    layer.add_module("norm", nn.BatchNorm2d(channels_out))
    layer.add_module("activation", nn.Hardtanh(inplace=True))
    return layer


def _linear(features_in: int, features_out: int) -> nn.Sequential:
    layer = nn.Sequential()
    layer.add_module("linear", nn.Linear(features_in, features_out, bias=False))
    layer.add_module("norm", nn.BatchNorm1d(features_out))
    layer.add_module("activation", nn.Hardtanh(inplace=True))
    return layer
