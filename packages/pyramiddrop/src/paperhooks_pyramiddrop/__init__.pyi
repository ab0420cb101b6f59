from .calibration import Calibration as Calibration
from .calibration import calibrate as calibrate
from .drops import Drop as Drop
from .method import PaperPyramidDrop as PaperPyramidDrop
from .method import PyramidDrop as PyramidDrop
from .method import RandomDrop as RandomDrop
from .policies import POLICIES as POLICIES
from .policies import Ranking as Ranking
from .report import illustrate as illustrate
from .schedule import DecoderShape as DecoderShape
from .schedule import Savings as Savings
from .schedule import Schedule as Schedule
from .schedule import solve_ratio as solve_ratio

__version__: str
