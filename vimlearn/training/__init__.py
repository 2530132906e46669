"""Training, evaluation and their options."""
