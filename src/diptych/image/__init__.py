"""The image panel: a network predicts the noise in a picture; it is removed, and so on."""
