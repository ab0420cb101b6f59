from .algorithm import PRESETS as PRESETS
from .algorithm import Objective as Objective
from .algorithm import SSOLoss as SSOLoss
from .algorithm import sso_loss as sso_loss
from .base_losses import PairLoss as PairLoss
from .base_losses import PairSums as PairSums
from .base_losses import pair_losses as pair_losses
from .base_losses import register_pair_loss as register_pair_loss
from .loop.alignment import Aligned as Aligned
from .loop.alignment import align as align
from .method import SSO as SSO
from .probes import Alarm as Alarm
from .probes import AlarmLimits as AlarmLimits
from .trl_trainer import HooksDPOTrainer as HooksDPOTrainer

__version__: str
