"""Contenders, baselines and controls: one file each, offering `plugin(variant, options) -> Method`."""
