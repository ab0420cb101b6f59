from .artefact import Artefact as Artefact
from .artefact import Edit as Edit
from .artefact import warn_of_config as warn_of_config
from .entries import ordinary as ordinary
from .journal import WeightJournal as WeightJournal
