"""Models that run as they are written: their attention calls meet decisions."""
