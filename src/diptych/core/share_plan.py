"""The first columns of a table of 64-bit integers that several threads work by (`core.together`)."""

LINE = 64  # bytes of a line of memory
SHARE, THREAD = 0, 8  # what threads count: shares taken, threads here; each on a line of its own
SCRATCH, SCRATCH_BYTES = 16, 17  # where the threads work, each in so many bytes of it
FIRST = 18  # column that is free for what is worked on
