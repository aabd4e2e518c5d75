"""The way through the node: receive -> route -> infer -> encode -> deliver, on files and as durable jobs.

``analysis`` takes one image through the tasks; ``files`` does that for the command line, ``jobs`` for the
node. ``serve`` keeps a ``receiver`` and a ``worker`` process alive.
"""
