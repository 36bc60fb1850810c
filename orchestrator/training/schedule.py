"""The learning rate as a function of the number of finished steps: nothing to save, nothing to restore."""

import math

from orchestrator.config.experiment import ConstantConfig, CosineConfig, ScheduleConfig, StepsConfig


def rate(config: ScheduleConfig, *, base_lr: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The rate of the step that follows `step` finished ones, 0 <= step < epochs * steps_per_epoch.

    With W = warmup_epochs * steps_per_epoch, rounded, T = epochs * steps_per_epoch and t = step:
    - warm-up, t < W:  base_lr * (t + 1) / W, so that the first step already moves and step W - 1 has base_lr;
    - cosine:  base_lr * (final + (1 - final) * (1 + cos(pi * (t - W) / (T - W))) / 2);
    - steps:  base_lr * factor^(number of `epochs` that have begun);
    - constant:  base_lr.
    Source: Goyal et al. 2017 (arXiv:1706.02677), section 2.2 for the gradual warm-up and 5.1 for the steps;
    Loshchilov & Hutter 2016 (arXiv:1608.03983), eq. 5 for the cosine, without restarts.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return base_lr * (step + 1) / warmup_steps
    match config:
        case CosineConfig(final=final):
            progress = (step - warmup_steps) / (epochs * steps_per_epoch - warmup_steps)
            return base_lr * (final + (1.0 - final) * (1.0 + math.cos(math.pi * progress)) / 2.0)
        case StepsConfig(epochs=starts, factor=factor):
            begun = sum(step >= start * steps_per_epoch for start in starts)
            return float(base_lr * factor**begun)
        case ConstantConfig():
            return base_lr
