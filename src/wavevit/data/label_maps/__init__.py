"""Token-label maps: the official files, the packed form and how both are read."""
