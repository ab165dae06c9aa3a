"""Helpers around the operating system that every folder uses: files, locks, shares of work, processes, terminals."""
