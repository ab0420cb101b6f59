from .comparison_report import MeasuredChoice as MeasuredChoice
from .comparison_report import comparison_blocks as comparison_blocks
from .comparison_report import text_table as text_table
from .pareto import write_front as write_front
from .search_report import blocks as blocks
from .search_runs import SearchRun as SearchRun
from .search_text import described as described
from .search_text import level_strip as level_strip
