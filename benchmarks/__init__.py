"""Side-by-side runs of mmray and its peers: one file a figure, each a ratio on one machine.

`python -m benchmarks [NAME...]`; README.md says what each ratio means.
"""
