"""The table of augmentations on the CPU that stand alone: an experiment names them by the `name` field of their class.

The rest, which is no choice for a `random_mix`, is in `pipelines/config.py`.
"""

from pipelines.augment.affine import Rotate, Shear, Stretch, Translate
from pipelines.augment.autoaugment import AutoAugment
from pipelines.augment.blur import GaussianBlur, Sharpness
from pipelines.augment.crop import RandomCrop
from pipelines.augment.elastic import Elastic
from pipelines.augment.erase import Cutout, Erasing
from pipelines.augment.flip import HorizontalFlip, VerticalFlip
from pipelines.augment.function import Function
from pipelines.augment.lens import LensDistortion
from pipelines.augment.perspective import Perspective
from pipelines.augment.randaugment import RandAugment
from pipelines.augment.tone import Autocontrast, Equalize, Grayscale, Invert, Posterize, Solarize
from pipelines.augment.trivialaugment import TrivialAugment

Operation = (
    RandomCrop
    | HorizontalFlip
    | VerticalFlip
    | Translate
    | Rotate
    | Stretch
    | Shear
    | Perspective
    | LensDistortion
    | Elastic
    | GaussianBlur
    | Sharpness
    | Grayscale
    | Solarize
    | Posterize
    | Equalize
    | Autocontrast
    | Invert
    | Erasing
    | Cutout
    | RandAugment
    | TrivialAugment
    | AutoAugment
    | Function
)
