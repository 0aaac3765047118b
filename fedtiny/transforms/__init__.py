"""What a device makes of its delta before it is sent: clip, noise, feedback, sparser, fewer bits.

Named in the experiment, ``transforms = ["clip:1", "feedback", "topk:0.1", "int8"]``, and carried
out in this order. Needs no NumPy, and gives the same bits with it.
"""
