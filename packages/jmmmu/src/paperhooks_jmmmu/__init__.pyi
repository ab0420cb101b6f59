from .answers import parse_choice as parse_choice
from .answers import parse_choice_robust as parse_choice_robust
from .data import make_sample as make_sample
from .data import read_questions as read_questions
from .method import Jmmmu as Jmmmu
from .method import JmmmuPro as JmmmuPro
from .method import JmmmuVerified as JmmmuVerified
from .method import MmmuPaired as MmmuPaired
from .paired import compare_languages as compare_languages
from .rotations import compare_rotations as compare_rotations

__version__: str
