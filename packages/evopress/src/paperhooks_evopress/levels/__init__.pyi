from .drop import SublayerDrop as SublayerDrop
from .gguf import Gguf as Gguf
from .gptq import GPTQ as GPTQ
from .sparsegpt import SparseGPT as SparseGPT
