from .algorithm import Evolution as Evolution
from .algorithm import SearchSchedule as SearchSchedule
from .algorithm import SelectionStage as SelectionStage
from .evaluator import Evaluator as Evaluator
from .levels import GPTQ as GPTQ
from .levels import Gguf as Gguf
from .levels import SparseGPT as SparseGPT
from .levels import SublayerDrop as SublayerDrop
from .method import EvoPress as EvoPress
from .simple_choices import BestBaseline as BestBaseline
from .spaces import LevelProblem as LevelProblem
from .spaces import Space as Space
from .spaces import Target as Target
from .spaces import Unit as Unit
from .spaces import UnitLevel as UnitLevel
from .spaces import problem as problem
from .sparsity_masks import SparsityMasks as SparsityMasks

__version__: str
