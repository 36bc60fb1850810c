"""Unit (no Ray cluster), integration (local Ray), fault (real kills)."""
