"""`fcdb`: the Flickr Cropping Dataset."""
