from .accumulated_counts import AccumulatedCounts as AccumulatedCounts
from .loss import compute_loss as compute_loss
from .trainer import HooksTrainerMixin as HooksTrainerMixin
