from .algorithm import allowed_mask as allowed_mask
from .algorithm import ring_table as ring_table
from .checkpoint import mark as mark
from .checkpoint import read_mark as read_mark
from .flow import information_flow as information_flow
from .images import positions as positions
from .method import CCA as CCA
from .schemes import SCHEMES as SCHEMES

__version__: str
