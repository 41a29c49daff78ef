"""Fairlead: steer a language model with the features inside it, and prove in a fair fight that it helped."""

__version__ = "0.1.0"
