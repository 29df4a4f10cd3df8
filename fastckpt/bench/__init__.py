"""The benchmark behind ``fastckpt bench``: fastckpt and its rivals, each in a process of its own, taking turns.

A parent without torch plans, prepares the page cache and asks; the children make tensors, save, load and measure
themselves. What comes out is one JSON document: everything that is printed or drawn is made from that.
"""
