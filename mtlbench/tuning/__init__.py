"""Hyperparameter search: settings of a method chosen by Optuna's TPE, scored on examples held out of training."""
