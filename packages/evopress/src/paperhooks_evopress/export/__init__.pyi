from .blocks import gguf as gguf
from .depth import stock as stock
from .depth import zeroed as zeroed
from .packs import compressed_tensors as compressed_tensors
from .packs import load_packed as load_packed
from .plain import sparse as sparse
from .skips import load_skipped as load_skipped
from .skips import skip_list as skip_list
