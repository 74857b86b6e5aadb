"""What is said of a registered model, and who is answered with what by it."""
