import paperhooks_evaluation as _evaluation

from .compression import compress as compress
from .data.scorer import score as score
from .data.selector import select as select
from .errors import ArtefactError as ArtefactError
from .errors import DataError as DataError
from .errors import HookError as HookError
from .errors import LibraryBroken as LibraryBroken
from .errors import MissingExtra as MissingExtra
from .errors import ModelError as ModelError
from .errors import PaperhooksError as PaperhooksError
from .errors import PluginBroken as PluginBroken
from .errors import PluginConflict as PluginConflict
from .errors import PluginError as PluginError
from .errors import PluginIncompatible as PluginIncompatible
from .errors import PluginNotFound as PluginNotFound
from .errors import RegistryError as RegistryError
from .errors import UnsupportedGeneration as UnsupportedGeneration
from .errors import UnsupportedModel as UnsupportedModel
from .hooks.call import Call as Call
from .hooks.call import Site as Site
from .hooks.compression import CompressionRequest as CompressionRequest
from .hooks.inputs import DecoderInputs as DecoderInputs
from .hooks.inputs import LayerInputs as LayerInputs
from .hooks.level import Level as Level
from .hooks.loss import LossContext as LossContext
from .hooks.specs import hookimpl as hookimpl
from .info import HOOK_API as HOOK_API
from .info import Paper as Paper
from .info import PluginInfo as PluginInfo
from .info import TaskInfo as TaskInfo
from .info import Traits as Traits
from .models.view import ModelView as ModelView
from .sessions.removal import strip as strip
from .sessions.session import Session as Session
from .sessions.session import active_session as active_session
from .sessions.session import attach as attach
from .training.trainer import HooksTrainerMixin as HooksTrainerMixin
from .weights.artefact import Artefact as Artefact
from .weights.journal import WeightJournal as WeightJournal

Comparison = _evaluation.Comparison
EvaluationCallback = _evaluation.EvaluationCallback
EvaluationResult = _evaluation.EvaluationResult
Task = _evaluation.Task
compare = _evaluation.compare
evaluate = _evaluation.evaluate
rescore = _evaluation.rescore

__version__: str
