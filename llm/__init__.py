"""Raw Korean text to a small chat model, one module or package for each config group."""
