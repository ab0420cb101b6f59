"""Models and their modules, apart from what :mod:`paperhooks.modelview` finds in them.

modules
    What a module is asked for, however it keeps its weights: where they are, in which dtype it computes, and a context
    in which they are there.
wrappers
    The model that really runs inside an adapter, a parallel wrapper or a value head.

Both take any module; neither knows families of models.
"""
