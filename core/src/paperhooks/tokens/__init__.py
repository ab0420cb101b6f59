"""Tokens that leave the sequence, and what is kept on a cache for its rows.

masks
    The attention mask of a shortened sequence, gathered from the full one.
row_state
    Tensors with a row for every row of a cache, which follow when its rows are reordered, repeated, selected or its
    length is cut; and caches that may only be used with the method that filled them.

Which tokens are alive, and a cache layer that knows which tokens its entries are, stand in ``paperhooks.selection``.
"""
