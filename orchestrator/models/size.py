"""What a network costs, found by running it without memory: weights, activations, multiply-adds."""

import math

from kernels import cost
from orchestrator.config.experiment import ModelConfig
from orchestrator.models.zoo import outline
from orchestrator.plan import ModelSize


def measure(config: ModelConfig, *, num_classes: int, channels: int, image_size: int) -> ModelSize:
    """Size a network for one image.

    Activations are the outputs of its layers, which is what the backward pass keeps, within a factor of two.
    Multiply-adds (times two) are those of convolutions and matrix products in the forward pass.
    Raises: InputError if the network cannot be built or run so.
    """
    model = outline(config, num_classes=num_classes, channels=channels, image_size=image_size)
    rows = cost.of_model(model, (channels, image_size, image_size))
    total = cost.total(rows)
    activations = sum(math.prod(row.output_size) for row in rows if row.output_size)
    return ModelSize(total.parameters, activations, 2 * total.multiply_adds)
