"""The measured claims: one command each, which writes a dated JSON and a chart to benchmarks/results/.

A speed is a ratio of two things that ran in turns on one machine: `measure` takes the turns, the medians and the notes
on hardware and versions. Nothing here is a test; no test has a time limit that decides.

measure      turns, ratios, the machine, files and charts
plain_ddp    what a user would write instead of Convoy: torch, DistributedDataParallel, in-memory batches
photos       the images they read: folders of photos repeated, CIFAR-10 unpacked, tars
cifar10      `convoy train` on CIFAR-10 from files to accuracy, and plain_cifar
plain_cifar  what a user would write instead: ImageFolder, torchvision's transforms, DataLoader, DDP
decode       CPU time of a random crop from an encoded photo, and of five other decoders
disk         small files against packed shards, cold and warm
overhead     images/s of the strategy sync over plain_ddp
overlap      a run's time over the longer of pipeline and step; whether it tells its wait truly
push_pull    a parameter server's push and pull over gloo's all-reduce
strategies   samples/s and accuracy of sync, backup, stale, async and local SGD
precision    rounding to few bits, and what networks learn in them
  precision_binarynet  what a network learns with signs
pipeline     the input pipeline against its limit and against other ways; the ways themselves:
  pipeline_arms     what needs nothing but Convoy and its dependencies
  pipeline_peers    WebDataset, SPDL, DALI, where they are installed
"""
