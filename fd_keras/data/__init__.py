"""Images in memory, in files and in data sets, batch by batch."""
