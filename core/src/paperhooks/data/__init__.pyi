from .scorer import score as score
from .scorer import select as select
