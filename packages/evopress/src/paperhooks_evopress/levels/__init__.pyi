from .drop import Drop as Drop
from .gguf import Gguf as Gguf
from .gptq import GPTQ as GPTQ
from .sparsegpt import SparseGPT as SparseGPT
