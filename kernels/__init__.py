"""How a convolution is computed: torch and the standard library only, no Ray and no YAML.

conv.py    conv2d with the algorithm as an argument, and the table of algorithms
native/    C sources, and what compiles them
shapes.py  the sizes of a convolution, and what they cost; UnsupportedShape
direct.py  by definition: the oracle that every other algorithm is tested against
"""
