from .track import TokenTrack as TokenTrack
from .track import compact as compact
