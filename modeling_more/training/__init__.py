"""This package trains, scores and publishes experts and mixtures, as `run_ner.py` and `run_re.py` ask."""
