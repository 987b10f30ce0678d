"""The files of the official PyTorch code, read and written."""
