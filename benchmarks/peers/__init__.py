"""What mmray is measured against: each a program of its own that prints its ticks as JSON."""
