"""Forecasts of the time, memory and disk that cells will need."""
