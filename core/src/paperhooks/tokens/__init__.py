"""Tokens that leave the sequence, and what is kept on a cache for its rows."""
