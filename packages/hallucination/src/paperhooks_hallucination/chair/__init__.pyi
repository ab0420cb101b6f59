from .lemmas import lemmatize as lemmatize
from .lemmas import tokenize as tokenize
from .metrics import ObjectTable as ObjectTable
from .metrics import chair_scores as chair_scores
from .objects import COCO_OBJECTS as COCO_OBJECTS
from .task import Chair as Chair
