"""How a convolution is computed: torch and the standard library only, no Ray and no YAML.

conv.py        conv2d and Conv2d, with the algorithm as an argument
operators.py   the three passes, as autograd and torch.compile know them
algorithms.py  the table of algorithms, one file each:
vendor.py      what PyTorch chooses, in either memory layout
direct.py      by definition: the oracle that every other is tested against
depthwise.py   one filter a channel, directly
depthwise_triton.py  the same on a GPU
pointwise.py   1 x 1 filters, as a matrix product
winograd.py    F(m x m, r x r), for filters of 3, 5 and 7 taps along either axis
winograd_native.py  the same in C
winograd_code.py  its transforms as C
winograd_points.py  its matrices, in exact fractions
winograd_triton.py  on a GPU, for 3 x 3 filters
winograd_plans.py  how that is cut into programs
im2col.py      one matrix product, of weights with copies of pixels
im2col_triton.py  the same on a GPU, without the copies
strassen.py    Strassen's matrix product, and im2col with it
fft.py         in the frequency domain, tile by tile, for large filters
fft_tiles.py   the size of its tiles
dft.py         its transforms, as matrices
cast.py        fp16 and bf16 by the vendor's fp32
triton_kernels.py  whether Triton computes a convolution on a GPU
gather.py      passes over images as gathers, for the two GPU kernels that are such
gather_triton.py  what those two share
linear.py      nn.Linear over pixels, as a 1 x 1 convolution
autocast.py    what autocast does to their arguments
allocator.py   memory kept by a process that frees it
swap.py        a model's convolutions, computed by chosen algorithms
inference.py   weights transformed beforehand
dispatch.py    what 'auto' is, from a table
defaults.py    what it is where the table says nothing
tune.py        measures the table
table.py       what was measured, and where it is kept
memory.py      the memory that a call takes beside its tensors, measured
passes.py      what an algorithm is
binary.py      convolutions and linear layers of signs
binary_triton.py  the same on a GPU
binary_bits.py  signs as bits
binary_packed.py  a trained network, with its filters as bits and its norms as thresholds
binary_graph.py  which norms can be thresholds
shift_norm.py  batch norms by powers of two
rounding.py    to few bits, to nearest or by chance
rounding_triton.py  the same on a GPU
bf16_updates.py  steps of optimizers on weights in bf16
shapes.py      the sizes of a convolution, and what they cost; UnsupportedShape
layout.py      NCHW and NHWC
cost.py        what a network costs, layer by layer
rewrite.py     other stacks of convolutions with the same receptive field, for less
native/        C sources, and what compiles them
"""
