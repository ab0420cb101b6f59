from .losses import DistillationLoss as DistillationLoss
from .losses import distillation_loss as distillation_loss
from .methods import Distil as Distil
from .methods import DistilTerm as DistilTerm
