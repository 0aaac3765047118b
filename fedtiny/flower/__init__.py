"""Flower and fedtiny, both ways: `strategy` runs theirs in ours, `app` runs ours in theirs.

A strategy of Flower's lives in a process of its own (`child`, `worker`), which has nothing but what
is sent to it in `frames`: so a run goes on after a crash on either side. flwr is imported there and
by `app`, never where fedtiny decides.
"""
