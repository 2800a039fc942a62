"""What a router really does, and whose fault a difference is: statistics of recorded routes, and routes forced again.

`study.py` is `lab.routing`, `split.py` `lab.routing_split`. The package is not called `routing`, because `lab.routing`
is a function. It works on the host, in NumPy, on what the taps of a mixture of experts show.
"""
