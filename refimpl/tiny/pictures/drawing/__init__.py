"""The drawing program: a scene in five words -> a 48 x 48 picture. No picture from elsewhere, no model."""
