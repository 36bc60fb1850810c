"""From bytes on disk to batches on the device, the same samples in the same order on any number of workers.

config.py      the `data` section of an experiment; the table of augmentations
order.py       which sample is read when, and by whom: arithmetic only
randomness.py  random draws that have an address instead of a state
layout.py      how a stream of steps is cut into chunks and dealt to ranks: arithmetic only
sources.py     where samples come from: digits, folders, tars, parquet, shards
listing.py     which samples a source has: ids, labels, order; the same for the same images in any form
targets.py     what a sample should be recognised as: a class, several, values; written labels -> arrays
files.py       the files that samples lie in: paths, globs, URIs; read in place
tar_index.py   where the images of a tar lie in it
webdataset.py  labels that lie beside their images in a tar
parquet_source.py  samples in the rows of parquet files
shards.py      packed samples: the format, reading, verifying
sizes.py       numbers of bytes as people write them
pack.py        many small files -> few large shards
split.py       which samples are held out, or kept in a subset: by a hash of the id
decode.py      an encoded image, or a box of it -> pixels of the wanted size
decode_jpeg.py  no more of a JPEG than the box needs
jpeg_header.py  what a JPEG says of itself before its pixels
orientation.py  what EXIF says about up and down
resize.py      one resize for all formats
native/        C sources, built at first use
quarantine.py  what cannot be read, and what stands in for it
check.py       which samples of a source cannot be used
stats.py       what a source holds: classes, sizes, colours, duplicates
preview.py     samples as training will see them, drawn
augment/       changes of pixels, one idea a file
produce.py     positions of an epoch -> pixels; what Ray's actors and local threads both run
stages.py      the only list of Ray Data stages
feed.py        chunks for whoever asks, where work is given to whoever is free
loader.py      the worker's side: blocks or threads -> batches in the order of steps
device.py      uint8 pixels -> what the network takes, on the device
"""
