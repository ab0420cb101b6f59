from .chair.metrics import ObjectTable as ObjectTable
from .chair.metrics import chair_scores as chair_scores
from .chair.objects import COCO_OBJECTS as COCO_OBJECTS
from .chair.task import Chair as Chair
from .mme.metrics import mme_scores as mme_scores
from .mme.task import Mme as Mme
from .pope.metrics import pope_scores as pope_scores
from .pope.task import Pope as Pope

__version__: str
