from .collector import CoverageWarning as CoverageWarning
from .collector import TokenScope as TokenScope
from .collector import collect as collect
from .statistics import AGGREGATES as AGGREGATES
from .statistics import Aggregate as Aggregate
from .statistics import Statistics as Statistics
from .statistics import matrix_from_row as matrix_from_row
from .statistics import row_of_matrix as row_of_matrix
