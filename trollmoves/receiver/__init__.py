"""The receiving half: receives announcements and fetches files from their sources."""
