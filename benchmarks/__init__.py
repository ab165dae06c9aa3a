"""Side-by-side speed and memory against peers, one script per area."""
