from .algorithm import Evolution as Evolution
from .algorithm import Schedule as Schedule
from .algorithm import Stage as Stage
from .evaluator import Evaluator as Evaluator
from .levels import GPTQ as GPTQ
from .levels import Drop as Drop
from .levels import Gguf as Gguf
from .levels import SparseGPT as SparseGPT
from .method import EvoPress as EvoPress
from .problems import Problem as Problem
from .problems import problem as problem
from .spaces import Choice as Choice
from .spaces import Space as Space
from .spaces import Unit as Unit
from .targets import Target as Target

__version__: str
