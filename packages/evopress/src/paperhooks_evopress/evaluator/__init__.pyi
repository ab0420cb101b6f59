from .calibration import CalibrationWarning as CalibrationWarning
from .calibration import sequences as sequences
from .evaluator import Counters as Counters
from .evaluator import Evaluator as Evaluator
from .evaluator import Fitness as Fitness
from .minibatches import MinibatchWarning as MinibatchWarning
from .minibatches import minibatch as minibatch
from .shared_evaluator import SharedEvaluator as SharedEvaluator
