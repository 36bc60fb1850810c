"""How a convolution is computed: torch and the standard library only, no Ray and no YAML.

conv.py    conv2d with the algorithm as an argument, and the table of algorithms
native/    C sources, and what compiles them
passes.py  what autograd is told of any algorithm
shapes.py  the sizes of a convolution, and what they cost; UnsupportedShape
cost.py    what a network costs, layer by layer
rewrite.py  other stacks of convolutions with the same receptive field, for less
direct.py  by definition: the oracle that every other algorithm is tested against
winograd.py         F(4x4, 3x3), for 3 x 3 filters
winograd_points.py  its matrices, in exact fractions
"""
