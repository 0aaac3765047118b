"""``plan = "auto"``: which layers, and how many of their channels, a device trains in its budget.

`contribution` says what each channel would add to learning, `choice` what may be chosen and what
that gives and costs, and `search` chooses: greedily, and then by small random changes of the best
(Lin et al. 2022, "On-Device Training Under 256KB Memory", section 3.2 and appendix D).
"""
