"""Time and memory of the layer, of its baselines, and of pipelines around it.

Run: ``python -m benchmarks.performance [--out benchmarks/results] [--only PART] [--smoke]``
"""
