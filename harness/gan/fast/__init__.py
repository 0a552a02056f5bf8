"""Faster layers, optimiser steps, CUDA graphs and arithmetic, equal to the plain ones within rounding."""
