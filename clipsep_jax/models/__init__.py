"""The mask network and its parts."""
