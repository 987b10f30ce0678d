"""Made-up sounds, pictures and a miniature CLIP."""
