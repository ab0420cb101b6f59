from .overview import write_overview as write_overview
from .round_report import write_round as write_round
