from .data import read_questions as read_questions
from .metrics import mme_scores as mme_scores
from .task import Mme as Mme
