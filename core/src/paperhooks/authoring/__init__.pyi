from .claims import check_claims as check_claims
from .claims import load_claims as load_claims
from .demo import DemoContext as DemoContext
from .registry_check import check_registry as check_registry
from .registry_entry import update_registry as update_registry
