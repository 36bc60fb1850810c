"""What is minimised: a loss for each sample of what the network puts out, added up over the batch, in fp32.

Where samples were mixed (mixup, cutmix), the labels are mixed in the same shares; cross entropy and binary cross
entropy are linear in the label, so that is the mixture of two losses (Zhang et al. 2017, arXiv:1710.09412).
"""

import torch.nn.functional as F
from torch import Tensor

from pipelines.device import Targets


def cross_entropy(outputs: Tensor, targets: Targets, label_smoothing: float) -> Tensor:
    """For one class a sample.

    The target is 1 - label_smoothing for the label plus label_smoothing / num_classes for each class.
    Shapes: outputs (N, num_classes) -> ().
    Source: Szegedy et al. 2015 (arXiv:1512.00567), section 7.
    """
    values = outputs.float()
    if targets.mixed_in is None or targets.share is None:
        return F.cross_entropy(values, targets.labels, reduction="sum", label_smoothing=label_smoothing)
    own, other = (
        F.cross_entropy(values, labels, reduction="none", label_smoothing=label_smoothing)
        for labels in (targets.labels, targets.mixed_in)
    )
    return (targets.share * own + (1 - targets.share) * other).sum()


def binary_cross_entropy(outputs: Tensor, targets: Targets) -> Tensor:
    """For any number of classes a sample: each class by itself, the mean over classes. (N, num_classes) -> ()."""
    return F.binary_cross_entropy_with_logits(outputs.float(), targets.blended(), reduction="none").mean(1).sum()


def mean_squared_error(outputs: Tensor, targets: Targets) -> Tensor:
    """For values: (output - value)^2, the mean over a sample's values. (N, num_values) -> ()."""
    return F.mse_loss(outputs.float(), targets.blended(), reduction="none").mean(1).sum()


def smooth_l1(outputs: Tensor, targets: Targets) -> Tensor:
    """For values with outliers: half the squared error up to 1, beyond that the error less a half; the mean over them.

    Shapes: (N, num_values) -> (). Source: Girshick 2015 (Fast R-CNN, arXiv:1504.08083), eq. 3.
    """
    return F.smooth_l1_loss(outputs.float(), targets.blended(), reduction="none").mean(1).sum()
