"""C sources with a plain C ABI, compiled on the machine that uses them.

build.py     compiles a source at first use, keeps the library, loads it; the pipelines' sources too
vectors.py   the flags of this CPU's vectors, and which tensors the kernels take
"""
