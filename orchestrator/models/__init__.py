"""The networks that an experiment can name.

mlp.py           a multi-layer perceptron, to compare with
zoo.py           the table of names: ours, and torchvision's
small.py         a residual network for images of 8 to 32 pixels
cifar_resnet.py  the first paper's residual networks for CIFAR-10: resnet20 to resnet110
binarynet.py     VGG in small, as binary layers want it: norms before them, activations that saturate
size.py          weights, activations and multiply-adds of a network, without running it
"""
