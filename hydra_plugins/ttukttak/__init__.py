"""Found by Hydra under this name beside train.py; no installation is needed."""
