"""Ten small tasks from free packages, and a command that judges encoders, layers and poolings on them."""
