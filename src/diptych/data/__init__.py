"""Data: texts and pictures, from wherever they lie to the rows of a step."""
