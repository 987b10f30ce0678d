"""Configs of training runs: `clipsep train --config=configs/NAME.py:DATASET`."""
