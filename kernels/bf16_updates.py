"""Steps of SGD and AdamW on weights in bf16, without a copy in fp32: computed in fp32, rounded by chance, in place.

To nearest, a step of less than 2^-9 of a weight is lost; stochastically it is made with the probability of its share,
so that weights move by the right amount in the mean (Gupta et al. 2015, arXiv:1502.02551, section 3; for training in
bf16 without a copy: Zamirai et al. 2020, "Revisiting BFloat16 Training", arXiv:2010.06192).

Each number is read and written once. Buffers of the state are fp32, or bf16 rounded stochastically too. What is random
is a function of the seed and the element's place (`rounding.py`), so a run resumes to the same bits. Computed by
native/updates.c on a CPU with a compiler, else by the formulas in torch; they differ by roundings of fp32.
"""

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.native import build
from kernels.native.vectors import load_library
from kernels.rounding import Key, is_without_gaps, round_bf16, stream


class Sgd(NamedTuple):
    """The rate, momentum and weight decay of a step: Sutskever et al. 2013's momentum as torch.optim.SGD has it."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False


class AdamW(NamedTuple):
    """Of step number `step`, from 1 on. Source: Loshchilov & Hutter 2019 (arXiv:1711.05101), algorithm 2."""

    lr: float
    step: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


def sgd_(weight: Tensor, grad: Tensor, moment: Tensor | None, by: Sgd, *, seed: int | None) -> None:
    """Update `weight` and `moment` in place.

    Shapes: all the same, any. dtypes: weight and grad bf16; moment fp32 or bf16, zero before the first step, and needed
    with a momentum. `seed`: of this tensor and this step, by `rounding.stream`; None rounds to nearest.
    Raises: ValueError for others.
    """
    if by.momentum and moment is None:
        raise ValueError("moment: got None, must be a tensor where momentum is not 0")
    buffers = () if moment is None or not by.momentum else (moment,)
    weight, grad = _checked(weight, grad, buffers)
    library = _library_for(weight, grad, *buffers)
    if library is None or seed is None:
        _sgd_by_torch(weight, grad, buffers, by, seed)
        return
    sizes = (_Sgd(by.lr, by.momentum, by.weight_decay),)
    if buffers:
        name = _name("sgd", buffers[0])
        getattr(library, name)(*_line(weight, grad, *buffers), *sizes, int(by.nesterov), *_last(seed))
    else:
        library.convoy_sgd_plain(*_line(weight, grad), *sizes, *_last(seed))


def adamw_(weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, by: AdamW, *, seed: int | None) -> None:
    """Update `weight` and the moments `first` and `second` in place.

    Shapes: all the same, any. dtypes: weight and grad bf16; the moments both fp32 or both bf16, zero before the first
    step. `seed`: of this tensor and this step, by `rounding.stream`; None rounds to nearest.
    Raises: ValueError for others.
    """
    weight, grad = _checked(weight, grad, (first, second))
    library = _library_for(weight, grad, first, second)
    if library is None or seed is None:
        _adamw_by_torch(weight, grad, first, second, by, seed)
        return
    (beta1, beta2), step = by.betas, by.step
    sizes = _AdamW(by.lr, beta1, beta2, by.eps, by.weight_decay, 1.0 - beta1**step, 1.0 - beta2**step)
    getattr(library, _name("adamw", first))(*_line(weight, grad, first, second), sizes, *_last(seed))


def _sgd_by_torch(weight: Tensor, grad: Tensor, buffers: tuple[Tensor, ...], by: Sgd, seed: int | None) -> None:
    wide = weight.float()
    step = grad.float() + by.weight_decay * wide
    for moment in buffers:
        new = by.momentum * moment.float() + step
        _put(moment, new, _of_buffer(seed, 1))
        step = step + by.momentum * new if by.nesterov else new
    _put(weight, wide - by.lr * step, seed)


def _adamw_by_torch(weight: Tensor, grad: Tensor, first: Tensor, second: Tensor, by: AdamW, seed: int | None) -> None:
    (beta1, beta2), step, wide = by.betas, by.step, grad.float()
    new_first = beta1 * first.float() + (1.0 - beta1) * wide
    new_second = beta2 * second.float() + (1.0 - beta2) * wide * wide
    _put(first, new_first, _of_buffer(seed, 1))
    _put(second, new_second, _of_buffer(seed, 2))
    size = new_second.sqrt() / (1.0 - beta2**step) ** 0.5 + by.eps
    decayed = weight.float() * (1.0 - by.lr * by.weight_decay)
    _put(weight, decayed - by.lr / (1.0 - beta1**step) * new_first / size, seed)


def _of_buffer(seed: int | None, number: int) -> int | None:
    return None if seed is None else stream(seed, number)


def _put(into: Tensor, value: Tensor, seed: int | None) -> None:
    if into.dtype == torch.bfloat16 and seed is not None:
        round_bf16(value, seed=seed, out=into)
    else:
        into.copy_(value)


def _checked(weight: Tensor, grad: Tensor, buffers: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    for name, each in (("weight", weight), ("grad", grad)):
        if each.dtype != torch.bfloat16:
            raise ValueError(f"{name}: got {each.dtype}, must be torch.bfloat16")
    dtypes = {each.dtype for each in buffers}
    if dtypes - {torch.float32, torch.bfloat16} or len(dtypes) > 1:
        found = ", ".join(str(each.dtype) for each in buffers)
        raise ValueError(f"the state: got {found}, must be torch.float32 or torch.bfloat16, all the same")
    for each in (grad, *buffers):
        if each.shape != weight.shape:
            raise ValueError(f"got {tuple(each.shape)}, must be {tuple(weight.shape)} as the weight")
    return weight.detach(), grad.detach()


def _library_for(*tensors: Tensor) -> ctypes.CDLL | None:
    """If it can be had, and elements lie at the same places of all."""
    first = tensors[0]
    alike = all(is_without_gaps(each) and each.stride() == first.stride() for each in tensors)
    return _library() if alike and first.device.type == "cpu" and first.numel() else None


def _name(rule: str, state: Tensor) -> str:
    return f"convoy_{rule}_{'bf16' if state.dtype == torch.bfloat16 else 'fp32'}"


def _line(weight: Tensor, *others: Tensor) -> tuple[ctypes.c_void_p | ctypes.c_int64, ...]:
    ends = (ctypes.c_void_p(each.data_ptr()) for each in (weight, *others))
    return (*ends, ctypes.c_int64(weight.numel()))


def _last(seed: int) -> "tuple[_Keys, int]":
    return _Keys(Key.of(seed), Key.of(stream(seed, 1)), Key.of(stream(seed, 2))), torch.get_num_threads()


class _Sgd(ctypes.Structure):
    _fields_ = [(name, ctypes.c_float) for name in ("lr", "momentum", "decay")]


class _AdamW(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_float)
        for name in ("lr", "beta1", "beta2", "eps", "decay", "first_correction", "second_correction")
    ]


class _Keys(ctypes.Structure):
    _fields_ = [(name, Key) for name in ("weights", "first", "second")]


@functools.cache
def _library() -> ctypes.CDLL | None:
    return build.loaded(lambda: load_library("updates"), "Weights in bf16 are updated by torch, which is slower")
