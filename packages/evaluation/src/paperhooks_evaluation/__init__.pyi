from .callback import EvaluationCallback as EvaluationCallback
from .comparison import Comparison as Comparison
from .comparison import PairedDifference as PairedDifference
from .comparison import compare as compare
from .differences import InputDifference as InputDifference
from .differences import RunsDiffer as RunsDiffer
from .evaluator import evaluate as evaluate
from .evaluator import rescore as rescore
from .harness.folder import Export as Export
from .harness.folder import export_task as export_task
from .results import EvaluationResult as EvaluationResult
from .results import EvaluationRun as EvaluationRun
from .task import Document as Document
from .task import DocumentList as DocumentList
from .task import FigureSpec as FigureSpec
from .task import Metric as Metric
from .task import Parsed as Parsed
from .task import Record as Record
from .task import Summary as Summary
from .task import Task as Task
from .task import available_tasks as available_tasks
from .task import grouped as grouped
from .task import load_task as load_task
from .task import mean_metric as mean_metric
from .task import mean_metrics as mean_metrics

__version__: str
