from .data import SPLITS as SPLITS
from .data import SUFFIX as SUFFIX
from .data import read_questions as read_questions
from .metrics import parse_strict as parse_strict
from .metrics import pope_scores as pope_scores
from .metrics import read_label as read_label
from .task import Pope as Pope
