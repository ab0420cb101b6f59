"""Plugins and helpers for the tests of the catalogue half of core."""
