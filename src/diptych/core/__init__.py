"""What both panels share and neither owns."""
