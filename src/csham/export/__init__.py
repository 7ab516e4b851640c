"""A trained network as one file for deployment, its outputs checked against the network."""
