from .artefact import Artefact as Artefact
from .artefact import Edit as Edit
from .journal import WeightJournal as WeightJournal
