"""Outer search: settings of a method chosen by Optuna's TPE on training rows that are kept from training."""
