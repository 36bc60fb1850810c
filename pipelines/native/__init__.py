"""C sources with a plain C ABI, compiled on the machine that uses them by kernels/native/build.py.

jpeg_region.c   one rectangle of a JPEG, through libjpeg-turbo
resize.c        uint8 pixels to another size, filtered
"""
