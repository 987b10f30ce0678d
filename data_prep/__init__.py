"""Turns folders of videos into records."""
