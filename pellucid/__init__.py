"""Pellucid explains image models whatever they were written in."""
