"""`distorted_photos`: real photographs, cut to many shapes, damaged to known degrees."""
