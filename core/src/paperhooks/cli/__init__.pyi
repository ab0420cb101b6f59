from .app import build_app as build_app
from .entry import main as main
from .options import build_methods as build_methods
from .options import empty_model as empty_model
from .options import load_model as load_model
from .options import load_processor as load_processor
from .options import parse_value as parse_value
from .options import usage_errors as usage_errors
