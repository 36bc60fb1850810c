"""Memory layouts of images: (N, C, H, W) in that order (NCHW), or with the channels of a pixel side by side (NHWC)."""

import torch
from torch import Tensor

from kernels.shapes import ConvShape

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def layout_of(images: Tensor) -> str:
    """'nhwc' if the images lie so and not as 'nchw' too; the layout of results, too. Shapes: images (N, C, H, W)."""
    return "nhwc" if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous() else "nchw"


def laid_out(images: Tensor, layout: str) -> Tensor:
    """The images in that layout, copied unless they lie so. Shapes: (N, C, H, W) -> the same."""
    return images.contiguous(memory_format=LAYOUTS[layout])


def layout_met(shape: ConvShape, layout: str) -> str:
    """How images come to a layer of a model whose images lie so: to a linear one always channels last."""
    return "nhwc" if shape.linear else layout


def empty(size: tuple[int, ...], like: Tensor) -> Tensor:
    """Images (N, C, H, W) of that size, to be filled, of the type, the device and the layout of others."""
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=LAYOUTS[layout_of(like)])
