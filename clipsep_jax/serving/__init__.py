"""The page and the HTTP door: separation for a browser and for programs, bounded in every size."""
