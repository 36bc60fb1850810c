"""What a network costs, found by running it without memory: weights, multiply-adds."""

from kernels import cost
from orchestrator.config.experiment import ModelConfig
from orchestrator.models.zoo import outline
from orchestrator.plan import ModelSize


def measure(config: ModelConfig, *, num_classes: int, channels: int, image_size: int) -> ModelSize:
    """Size a network for one image: multiply-adds (times two) of convolutions and matrix products in the forward pass.

    Raises: InputError if the network cannot be built or run so.
    """
    model = outline(config, num_classes=num_classes, channels=channels, image_size=image_size)
    total = cost.total(cost.of_model(model, (channels, image_size, image_size)))
    return ModelSize(total.parameters, 2 * total.multiply_adds)
