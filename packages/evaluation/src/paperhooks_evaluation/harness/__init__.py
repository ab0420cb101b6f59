"""Folders by which lm-eval and lmms-eval run a task of this toolkit: what is written, and what they call."""
