"""Data: corpora, captioned scenes, packing."""
