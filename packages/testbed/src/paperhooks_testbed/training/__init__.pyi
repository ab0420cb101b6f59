from .checkpoint import load_checkpoint as load_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .packer import IGNORE as IGNORE
from .packer import PREFIX as PREFIX
from .packer import Batch as Batch
from .packer import pack as pack
