"""Boxes and masks: annotation formats, checks, conversion, transforms and loaders."""
