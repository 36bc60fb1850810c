"""From bytes on disk to batches on the device, the same samples in the same order on any number of workers.

config.py      the `data` section of an experiment; the table of augmentations
order.py       which sample is read when, and by whom: arithmetic only
randomness.py  random draws that have an address instead of a state
layout.py      how a stream of steps is cut into chunks and dealt to ranks: arithmetic only
sources.py     where samples come from: digits, folders, tars
listing.py     which samples a source has: ids, labels, order; the same for a folder and a tar
tar_index.py   where the images of a tar lie in it
decode.py      an encoded image -> pixels of the wanted size
augment/       changes of pixels, one idea a file
produce.py     positions of an epoch -> pixels; what Ray's actors and local threads both run
stages.py      the only list of Ray Data stages
loader.py      the worker's side: blocks or threads -> batches in the order of steps
device.py      uint8 pixels -> normalised floats, on the device
"""
