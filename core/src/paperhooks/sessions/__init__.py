"""What a session is made of, apart from :mod:`paperhooks.session` itself.

followed_tokens
    Masks, positions and rotary tables, fitted to the tokens that a layer still gets.
layer_check
    Whether a decoder calls its layers as hooks expect it.
removal
    Finding and removing what stands on a model or on a copy of one.
running
    Which threads are inside a call of a model.
undo
    The undo stack, and attributes of an instance that are taken back as far as they are still ours.
"""
