"""`vessel`: scenes that Vessel and others had rated for beauty."""
