from .host import on_host as on_host
from .track import TokenTrack as TokenTrack
from .track import compact as compact
