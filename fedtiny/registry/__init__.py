"""What devices there are, which Program fits them, and what a visit costs them."""
