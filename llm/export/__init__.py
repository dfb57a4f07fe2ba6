"""A trained model -> a folder that others load without us, after it was shown to be that model."""
