"""What every part of the project needs of the operating system: files, locks, processes, cores."""
