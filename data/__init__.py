"""From audio files to training batches: log-mel front end, archives, loader, and the commands that prepare them."""
