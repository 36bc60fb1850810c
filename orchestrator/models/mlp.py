"""A multi-layer perceptron: what convolutional networks are compared with, every pixel by every weight.

All pixels in a row, linear layers with ReLU in between; no batch statistics. Its size is chosen at will and its
arithmetic is small for its size, so it also measures what it costs to send weights.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class Mlp(nn.Module):
    """Classify images by linear layers. `hidden`: the sizes of the layers between pixels and classes.

    Shapes: (N, channels, image_size, image_size) -> logits (N, num_classes).
    Raises: ValueError for a size below 1.
    """

    def __init__(self, num_classes: int, channels: int, image_size: int, *, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        if not all(isinstance(size, int) and size >= 1 for size in hidden):
            raise ValueError(f"hidden: got {list(hidden)}, must be a list of whole numbers >= 1.")
        sizes = [channels * image_size**2, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for size, following in pairwise(sizes):
            layers += [nn.Linear(size, following), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits
