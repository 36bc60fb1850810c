"""AdaMax whose factors are powers of two, so that an update shifts bits where it would multiply and divide.

m <- m + (1 - beta1) (g - m); v <- max(beta2 v, |g| + eps); w <- w - AP2(lr / (1 - beta1^t)) m / AP2(v), where AP2 is
the nearest power of two (`kernels/shift_norm.py`). The paper's betas, 1 - 2^-3 and 1 - 2^-10, make the averages shifts
too. A schedule's rate acts by its nearest power of two.

Source: Courbariaux et al. 2016 (arXiv:1602.02830), Algorithm 4, after Kingma & Ba 2014 (arXiv:1412.6980), Algorithm 2.
As in torch.optim.Adamax, eps keeps v above zero, and weight decay is added to gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.shift_norm import power_of_two


class ShiftAdamax(torch.optim.Optimizer):
    """Options and state are torch.optim.Adamax's: `step`, `exp_avg` (m) and `exp_inf` (v) of each weight."""

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "Convoy's loop has none"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)
            state.update({name: torch.zeros_like(weight) for name in ("exp_avg", "exp_inf")})
        state["step"] += 1
        if group["weight_decay"]:
            grad = grad.add(weight, alpha=group["weight_decay"])
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(grad, 1 - beta1)
        torch.maximum(state["exp_inf"].mul_(beta2), grad.abs().add_(group["eps"]), out=state["exp_inf"])
        rate = power_of_two(torch.tensor(group["lr"] / (1 - beta1 ** int(state["step"])), dtype=torch.float32))
        weight.addcdiv_(state["exp_avg"], power_of_two(state["exp_inf"]), value=-float(rate))
