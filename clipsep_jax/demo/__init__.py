"""The toy data set and the miniature CLIP of `clipsep demo`: made by code, nothing is downloaded."""
