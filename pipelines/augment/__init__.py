"""Augmentations, one idea a file. The table that names them is in pipelines/config.py.

base.py       what an augmentation is
crop.py       pad and cut out at a random place
flip.py       mirror left to right
normalize.py  zero mean and unit deviation, on the device
"""
