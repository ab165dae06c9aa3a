"""Helpers around the operating system that every folder uses: atomic files, folder locks, worker processes, cores."""
