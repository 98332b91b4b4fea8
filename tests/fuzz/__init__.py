"""Hostile input by the thousand: mutated files of every kind that the package reads, and what came of each.

A target (`targets.py`) knows one kind: how to make a hostile one of it, and how the package reads it. The right answers
are two: it is read, or it is refused with the package's own error. `harness.py` counts everything else, in processes of
its own: raw exceptions, deaths, hangs, memory, and files left behind.

    python -m tests.fuzz --csv docs/benchmarks/fuzz.csv     the whole campaign, as `make campaign` runs it
    python -m tests.fuzz recipe --case 1234                 one case again, with its traceback
"""
