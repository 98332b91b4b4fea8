"""Training runs that are killed, told to stop, damaged or short of disk, beside the same run left alone.

Each session is a process of its own that runs the command `train`, forked from one that has imported everything. What
is compared at the end: last and best weights bit for bit, `metrics.csv` but for times. What is measured of each
interruption: steps made again, and the seconds from the state that training went on from to the interruption.

    python -m tests.kill --data ../shared/data/Dataset004_Hippocampus --csv docs/benchmarks/kill.csv
"""
