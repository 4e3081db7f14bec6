"""What makes the published accuracies, on the models and images of ../shared."""
