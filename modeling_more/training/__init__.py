"""What a run does: arguments, retrieval, models, optimization, checkpoints, scores, the mixture, cards."""
