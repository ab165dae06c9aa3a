"""One module per experiment; each is also a HEAR API module. `configs.base` holds what they share."""
