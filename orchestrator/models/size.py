"""What a network costs, found by running it without memory: weights, activations, multiply-adds."""

import torch
from torch import Tensor, nn

from kernels.shapes import ConvShape
from orchestrator.config.experiment import ModelConfig
from orchestrator.models.zoo import outline
from orchestrator.plan import ModelSize


def measure(config: ModelConfig, *, num_classes: int, channels: int, image_size: int) -> ModelSize:
    """Size a network for one image.

    Activations are the outputs of its leaf layers, which is what the backward pass keeps, within a factor of two.
    Multiply-adds (times two) are those of convolutions and linear layers in the forward pass.
    Raises: InputError if the network cannot be built or run so.
    """
    model = outline(config, num_classes=num_classes, channels=channels, image_size=image_size)
    activations = flops = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal activations, flops
        if isinstance(output, Tensor):
            activations += output.numel() // 2
        if isinstance(module, nn.Conv2d):
            shape = ConvShape.of(
                inputs[0],
                module.weight,
                module.stride,
                module.padding,
                module.dilation,
                module.groups,
            )
            flops += shape.flops // 2
        elif isinstance(module, nn.Linear):
            flops += module.in_features * output.numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if not list(m.children())]
    with torch.device("meta"), torch.no_grad():
        model(torch.empty(2, channels, image_size, image_size))
    for hook in hooks:
        hook.remove()
    return ModelSize(sum(p.numel() for p in model.parameters()), activations, flops)
