"""Augmentations, one idea a file. The tables that name them are in table.py and pipelines/config.py.

base.py             what an augmentation is: framing, CPU, colour, mixing
table.py            the table of those on the CPU that stand alone
shorthand.py        the short forms in which an experiment writes them
program.py          a list of them, checked, and compiled into what runs where
on_device.py        the device's part of it: one matrix an image, then mixing; the only one that imports torch
framing.py          which part of an image is decoded: Inception's crop, ResNet's, the central one
crop.py             pad and cut out at a random place
flip.py             mirror left to right, top to bottom
geometry.py         maps of coordinates, composed into one resampling
affine.py           translate, rotate, stretch, shear
perspective.py      a random homography
lens.py             radial distortion
elastic.py          smooth noise moves every pixel
operations.py       what is done to one image's grey levels, as functions
tone.py             invert, solarize, posterize, equalize, autocontrast, grey
blur.py             blur and sharpen
erase.py            erasing and cutout
policy.py           the operations that published policies are made of
randaugment.py      some at random, of one strength
trivialaugment.py   one at random, of any strength
autoaugment.py      pairs that were searched for
random_mix.py       a random choice out of any list
function.py         a user's own
trial.py            which is tried out before anything starts
colour_map.py       changes of colour as arithmetic, composed into one; on the CPU
colour.py           brightness, contrast, saturation, hue as one matrix
pca.py              AlexNet's colour
normalize.py        zero mean and unit deviation, on the device
mixing.py           mixup and cutmix, and who is mixed with whom
random_mixing.py    mixup or cutmix, a choice for each group
beta.py             draws from Beta(alpha, alpha)
"""
