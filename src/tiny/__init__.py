"""The tiny pair: models, language and tasks that need no download."""
