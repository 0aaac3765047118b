"""The device's side: its session, its learner, its link. Runs where there is no NumPy."""
