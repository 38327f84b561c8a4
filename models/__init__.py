"""The three tasks: image classification, sentiment, recommendation. Each is one `ModelSpec` (models/spec.py)."""
