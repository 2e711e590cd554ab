"""`ava`: A Large-Scale Database for Aesthetic Visual Analysis."""
