from .scorer import score as score
from .selection import Selection as Selection
from .selection import choose as choose
from .selector import select as select
