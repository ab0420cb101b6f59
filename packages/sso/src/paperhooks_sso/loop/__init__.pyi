from .alignment import Aligned as Aligned
from .alignment import align as align
from .options import LoopOptions as LoopOptions
from .options import Pace as Pace
from .rounds import Round as Round
from .rounds import rounds_of as rounds_of
