from .algorithm import allowed_mask as allowed_mask
from .algorithm import positions as positions
from .checkpoint import mark as mark
from .checkpoint import read_mark as read_mark
from .checkpoint import unmark as unmark
from .flow import information_flow as information_flow
from .method import CCA as CCA
from .schemes import SCHEMES as SCHEMES
from .schemes import ring_permutation as ring_permutation
from .schemes import ring_table as ring_table

__version__: str
