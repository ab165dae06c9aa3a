"""The HEAR benchmark's own packages (heareval, hearvalidator), unmodified, on today's libraries. See README.md here."""
