"""A Toxiproxy-compatible server in this process's own language: the same HTTP API, plus faults in whole NATS messages.

`python -m chaos.toxiproxy.embedded` starts it. What it deliberately does otherwise is in `differences.py`.
"""
