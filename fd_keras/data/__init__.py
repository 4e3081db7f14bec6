"""Read images and labels from arrays, data sets and files."""
