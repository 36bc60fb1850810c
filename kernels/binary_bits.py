"""Signs as bits, 32 channels a word: 1 is +1, 0 is -1. Channels that fill a last word are zero bits.

The form that is kept and written to files: [filter][tap][word], channel c in bit c % 32 of word c // 32. It needs no
compiler and is the same on every machine.
"""

import torch
from torch import Tensor

WORD = 32


def bits_of(weight: Tensor) -> Tensor:
    """The signs of filters. Shapes: (K, C, R, S) -> (K, R S, ceil(C / 32)), int32."""
    k, c, r, s = weight.shape
    positive = (weight.detach() >= 0).permute(0, 2, 3, 1).reshape(k, r * s, c)
    filled = torch.nn.functional.pad(positive, (0, -c % WORD)).view(k, r * s, -1, WORD)
    places = torch.arange(WORD, device=weight.device)
    return (filled.long() << places).sum(-1).to(torch.int32)  # the last place is the sign of an int32


def signs_of(bits: Tensor, size: tuple[int, int, int, int]) -> Tensor:
    """1 and -1 in fp32. Shapes: (K, R S, ceil(C / 32)) -> (K, C, R, S), which is `size`."""
    k, c, r, s = size
    places = torch.arange(WORD, device=bits.device, dtype=torch.int32)
    positive = (bits[..., None] >> places) & 1
    signs = positive.view(k, r, s, -1)[..., :c].permute(0, 3, 1, 2)
    return (2 * signs - 1).to(torch.float32)
