"""What a job may do to samples on the way: leave some out, know repeats, mask personal data."""
