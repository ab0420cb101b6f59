from .data_sources import DataSource as DataSource
from .data_sources import StoredRow as StoredRow
from .data_sources import holds_tables as holds_tables
from .faults import raise_faults as raise_faults
from .folders import OUTSIDE as OUTSIDE
from .folders import ImageFolder as ImageFolder
from .places import image_request as image_request
from .places import placed_picture as placed_picture
