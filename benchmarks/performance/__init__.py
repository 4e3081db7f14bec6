"""Time and memory of the layer beside its peers, and what is left of both elsewhere.

Run: ``python -m benchmarks.performance [--out benchmarks/results] [--only PART] [--smoke]``
"""
