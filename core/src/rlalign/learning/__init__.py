"""Gradients and optimiser steps: knows neither files nor YAML nor hooks."""
